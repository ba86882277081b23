# SPDX-License-Identifier: Apache-2.0
"""The ops of csrc/launch, over whoever launches: a GPU's library (cuda.py) or the emulator (cuda_emulated.py)."""

from typing import Any, Protocol

from torch import Tensor

from pagedserve.backends import params
from pagedserve.backends.operands import AppendKv, PlanDecode
from pagedserve.backends.params import Fields
from pagedserve.errors import InvalidInput


class Launch(Protocol):
    """Puts a launcher's kernels into the current stream of a tensor's device."""

    def __call__(self, launcher: str, struct: str, fields: Fields, where: Tensor) -> None: ...


class Blocks(Protocol):
    """CUDA blocks that share a decode's work on a tensor's device, where the caller does not say."""

    def __call__(self, where: Tensor) -> int: ...


class CudaOps:
    """Each op's method takes checked tensors and launches. Nothing waits for the device."""

    def __init__(self, launch: Launch, default_blocks: Blocks) -> None:
        self._launch = launch
        self._default_blocks = default_blocks

    def plan_decode(self, *operands: Any) -> None:
        call = PlanDecode.of("plan_decode", *operands)
        if call.workspace.data_ptr() % params.WORKSPACE_ALIGNMENT:
            raise InvalidInput(
                f"plan_decode: workspace begins at an address that is no multiple of {params.WORKSPACE_ALIGNMENT} "
                f"bytes; give a tensor of its own, or a slice that begins at a multiple"
            )
        fields = params.plan_decode(call, call.num_blocks or self._default_blocks(call.kv_lens))
        self._launch("plan_decode", "PlanDecodeParams", fields, call.kv_lens)

    def append_kv(self, *operands: Any) -> None:
        call = AppendKv.of("append_kv", *operands)
        self._launch("append_kv", "AppendKvParams", params.append_kv(call), call.k)

    def copy_pages(self, src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
        self._launch("copy_pages", "CopyPagesParams", params.copy_pages(src, dst, src_pages, dst_pages), src)
