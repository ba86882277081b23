# SPDX-License-Identifier: Apache-2.0
"""The ops on CPU tensors, interpreted and watched: what the table of backends calls "triton-interpreted".

Thousands of times slower than a GPU: for learning, tests and debugging.
"""

from __future__ import annotations

from typing import Any

from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.interpreter import interpret
from pagedserve.backends.triton.launch import as_op
from pagedserve.backends.triton.target import INTERPRETED, Target


def _target(*operands: Any) -> Target:
    return INTERPRETED


paged_decode = as_op(attention.paged_decode, _target, interpret)
paged_prefill = as_op(attention.paged_prefill, _target, interpret)
merge_states = as_op(attention.merge_states, _target, interpret)
append_kv = as_op(cache.append_kv, _target, interpret)
rms_norm = as_op(fused.rms_norm, _target, interpret)
rope = as_op(fused.rope, _target, interpret)
silu_mul = as_op(fused.silu_mul, _target, interpret)
gelu_mul = as_op(fused.gelu_mul, _target, interpret)
sample = as_op(sampling.sample, _target, interpret)
