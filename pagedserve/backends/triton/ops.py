# SPDX-License-Identifier: Apache-2.0
"""The ops on CUDA tensors: what the table of backends calls "triton"."""

from __future__ import annotations

from typing import Any

import torch

from pagedserve.backends.triton.builders import as_ops
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import Target, of_device


def _target(*operands: Any) -> Target:
    device = next(operand.device for operand in operands if isinstance(operand, torch.Tensor))
    return of_device(torch.cuda.current_device() if device.index is None else device.index)


def _run(launches: list[Launch]) -> None:
    for launch in launches:
        with torch.cuda.device(launch.tensors[0].device):
            launch.run()


globals().update(as_ops(_target, _run))
