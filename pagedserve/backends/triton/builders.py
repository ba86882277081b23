# SPDX-License-Identifier: Apache-2.0
"""What makes the launches of each op; ops.py and interpreted.py run them."""

from __future__ import annotations

from collections.abc import Callable

from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.launch import Launch, as_op
from pagedserve.backends.triton.target import Target

BUILDERS: tuple[Callable[..., list[Launch]], ...] = (
    attention.paged_decode,
    attention.paged_prefill,
    attention.merge_states,
    cache.append_kv,
    cache.rope_append_kv,
    fused.rms_norm,
    fused.rope,
    fused.silu_mul,
    fused.gelu_mul,
    sampling.sample,
)


def as_ops(target: Callable[..., Target], run: Callable[[list[Launch]], None]) -> dict[str, Callable[..., None]]:
    """Every op of the table of backends, by its name. target, run: see as_op."""
    return {build.__name__: as_op(build, target, run) for build in BUILDERS}
