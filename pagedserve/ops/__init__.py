# SPDX-License-Identifier: Apache-2.0
"""The kernel API: every function checks its arguments, chooses a backend, and runs it."""

from pagedserve.ops import torch_ops
from pagedserve.ops.attention import lse_from_base2, merge_states, paged_decode, paged_prefill
from pagedserve.ops.cache import append_kv, copy_pages, rope_append_kv
from pagedserve.ops.call import Explanation, explain
from pagedserve.ops.fused import gelu_mul, rms_norm, rope, silu_mul, soft_cap
from pagedserve.ops.linear import embed, linear, take_rows
from pagedserve.ops.plan import decode_workspace_bytes, plan_decode
from pagedserve.ops.registry import backends_of
from pagedserve.ops.rope_table import rope_table
from pagedserve.ops.sampling import Sampled, sample, sampler
from pagedserve.ops.step import (
    Buffer,
    EagerStep,
    KVLayer,
    Step,
    StepBuilder,
    StepInputs,
    StepLimits,
    check_backend,
    check_step_backend,
    step_builder,
)
from pagedserve.ops.weight import Weight

__all__ = [
    "Buffer",
    "EagerStep",
    "Explanation",
    "KVLayer",
    "Sampled",
    "Step",
    "StepBuilder",
    "StepInputs",
    "StepLimits",
    "Weight",
    "append_kv",
    "backends_of",
    "check_backend",
    "check_step_backend",
    "copy_pages",
    "decode_workspace_bytes",
    "embed",
    "explain",
    "gelu_mul",
    "linear",
    "lse_from_base2",
    "merge_states",
    "paged_decode",
    "paged_prefill",
    "plan_decode",
    "rms_norm",
    "rope",
    "rope_append_kv",
    "rope_table",
    "sample",
    "sampler",
    "silu_mul",
    "soft_cap",
    "step_builder",
    "take_rows",
    "torch_ops",
]
