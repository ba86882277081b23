# SPDX-License-Identifier: Apache-2.0
"""The ops of csrc/launch, over whoever launches: a GPU's library (cuda.py) or the emulator (cuda_emulated.py)."""

from typing import Protocol

from torch import Tensor

from pagedserve.backends import params
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

    def plan_decode(
        self,
        kv_lens: Tensor,
        workspace: Tensor,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_len: int,
        window: int,
        num_blocks: int,
    ) -> None:
        if workspace.data_ptr() % params.WORKSPACE_ALIGNMENT:
            raise InvalidInput(
                f"plan_decode: workspace begins at an address that is no multiple of {params.WORKSPACE_ALIGNMENT} "
                f"bytes; give a tensor of its own, or a slice that begins at a multiple"
            )
        num_blocks = num_blocks or self._default_blocks(kv_lens)
        fields = params.plan_decode(kv_lens, workspace, num_q_heads, num_kv_heads, head_dim, q_len, window, num_blocks)
        self._launch("plan_decode", "PlanDecodeParams", fields, kv_lens)

    def append_kv(
        self,
        k: Tensor,
        v: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        slot_mapping: Tensor,
        k_scales: Tensor | None,
        v_scales: Tensor | None,
    ) -> None:
        fields = params.append_kv(k, v, k_pages, v_pages, slot_mapping, k_scales, v_scales)
        self._launch("append_kv", "AppendKvParams", fields, k)

    def copy_pages(self, src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
        self._launch("copy_pages", "CopyPagesParams", params.copy_pages(src, dst, src_pages, dst_pages), src)
