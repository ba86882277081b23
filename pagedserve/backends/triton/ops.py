# SPDX-License-Identifier: Apache-2.0
"""The ops on CUDA tensors: what the table of backends calls "triton"."""

from __future__ import annotations

from typing import Any

import torch

from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.launch import Launch, as_op
from pagedserve.backends.triton.target import Target, of_device


def _device_of(*operands: Any) -> torch.device:
    return next(operand.device for operand in operands if isinstance(operand, torch.Tensor))


def _target(*operands: Any) -> Target:
    device = _device_of(*operands)
    return of_device(torch.cuda.current_device() if device.index is None else device.index)


def _run(launches: list[Launch]) -> None:
    for launch in launches:
        with torch.cuda.device(_device_of(*launch.arguments.values())):
            launch.run()


paged_decode = as_op(attention.paged_decode, _target, _run)
paged_prefill = as_op(attention.paged_prefill, _target, _run)
merge_states = as_op(attention.merge_states, _target, _run)
append_kv = as_op(cache.append_kv, _target, _run)
rms_norm = as_op(fused.rms_norm, _target, _run)
rope = as_op(fused.rope, _target, _run)
silu_mul = as_op(fused.silu_mul, _target, _run)
gelu_mul = as_op(fused.gelu_mul, _target, _run)
sample = as_op(sampling.sample, _target, _run)
