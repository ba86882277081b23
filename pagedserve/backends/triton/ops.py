# SPDX-License-Identifier: Apache-2.0
"""The ops on CUDA tensors: what the table of backends calls "triton"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.launch import Launch, signature_of
from pagedserve.backends.triton.target import of_device


def _on_device(build: Callable[..., list[Launch]]) -> Callable[..., None]:
    """An op, of what builds its launches."""

    def op(*operands: Any) -> None:
        device = next(operand.device for operand in operands if isinstance(operand, torch.Tensor))
        with torch.cuda.device(device):
            for launch in build(of_device(torch.cuda.current_device()), *operands):
                launch.run()

    return signature_of(op, build)


paged_decode = _on_device(attention.paged_decode)
paged_prefill = _on_device(attention.paged_prefill)
merge_states = _on_device(attention.merge_states)
append_kv = _on_device(cache.append_kv)
rms_norm = _on_device(fused.rms_norm)
rope = _on_device(fused.rope)
silu_mul = _on_device(fused.silu_mul)
gelu_mul = _on_device(fused.gelu_mul)
sample = _on_device(sampling.sample)
