# SPDX-License-Identifier: Apache-2.0
"""The ops on CPU tensors, interpreted and watched: what the table of backends calls "triton-interpreted".

Thousands of times slower than a GPU: for learning, tests and debugging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.interpreter import interpret
from pagedserve.backends.triton.launch import Launch, signature_of
from pagedserve.backends.triton.target import INTERPRETED


def _interpreted(build: Callable[..., list[Launch]]) -> Callable[..., None]:
    """An op, of what builds its launches."""

    def op(*operands: Any) -> None:
        interpret(build(INTERPRETED, *operands))

    return signature_of(op, build)


paged_decode = _interpreted(attention.paged_decode)
paged_prefill = _interpreted(attention.paged_prefill)
merge_states = _interpreted(attention.merge_states)
append_kv = _interpreted(cache.append_kv)
rms_norm = _interpreted(fused.rms_norm)
rope = _interpreted(fused.rope)
silu_mul = _interpreted(fused.silu_mul)
gelu_mul = _interpreted(fused.gelu_mul)
sample = _interpreted(sampling.sample)
