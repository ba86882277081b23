# SPDX-License-Identifier: Apache-2.0
"""The ops of csrc/launch, over whoever launches: a GPU's library (cuda.py) or the emulator (cuda_emulated.py)."""

from typing import Any, Protocol

import torch
from torch import Tensor

from pagedserve.backends import params
from pagedserve.backends.operands import AppendKv, Attention, PlanDecode
from pagedserve.backends.params import Fields
from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.specs.plan_layout import workspace_bytes

# Pages' dtypes, and the launch files that run them.
DECODE_FORMATS = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float8_e4m3fn: "f8",
    torch.int8: "i8",
    torch.uint8: "i4",
}
MAX_TREE = 32  # queries of a tree mask: one bit each


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
        self._plan(PlanDecode.of("plan_decode", *operands))

    def _plan(self, call: PlanDecode) -> None:
        check_alignment("plan_decode", call.workspace)
        fields = params.plan_decode(call, call.num_blocks or self._default_blocks(call.kv_lens))
        self._launch("plan_decode", "PlanDecodeParams", fields, call.kv_lens)

    def paged_decode(self, *operands: Any) -> None:
        call = Attention.of("paged_decode", *operands)
        if call.tree_mask is not None and call.q_len > MAX_TREE:
            raise BackendUnavailable(
                f"paged_decode: q_len is {call.q_len}; with a tree_mask CUDA takes up to {MAX_TREE}"
            )
        num_blocks = self._default_blocks(call.q)
        workspace = self._planned(call, num_blocks) if call.workspace is None else call.workspace
        check_alignment("paged_decode", workspace)
        fields = params.attention(call)
        fields |= {"workspace": workspace, "workspace_bytes": workspace.numel(), "num_blocks": num_blocks}
        self._launch(f"paged_decode_{DECODE_FORMATS[call.k_pages.dtype]}", "PagedAttentionParams", fields, call.q)

    def _planned(self, call: Attention, num_blocks: int) -> Tensor:
        """A workspace that holds a plan of this call alone."""
        num_seqs, max_pages = call.page_table.shape
        _, page_size, num_kv_heads, _ = call.k_pages.shape
        _, num_q_heads, head_dim = call.q.shape
        max_kv_tokens = num_seqs * max_pages * page_size
        size = workspace_bytes(
            num_seqs, num_q_heads, num_kv_heads, head_dim, max_kv_tokens=max_kv_tokens, q_len=call.q_len
        )
        workspace = torch.empty(size, dtype=torch.uint8, device=call.q.device)
        plan = PlanDecode(
            kv_lens=call.kv_lens,
            workspace=workspace,
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            q_len=call.q_len,
            window=call.window,
            num_blocks=num_blocks,
        )
        self._plan(plan)
        return workspace

    def merge_states(self, o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> None:
        self._launch("merge_states", "MergeStatesParams", params.merge_states(o, lse, out, out_lse), o)

    def append_kv(self, *operands: Any) -> None:
        call = AppendKv.of("append_kv", *operands)
        self._launch("append_kv", "AppendKvParams", params.append_kv(call), call.k)

    def copy_pages(self, src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
        self._launch("copy_pages", "CopyPagesParams", params.copy_pages(src, dst, src_pages, dst_pages), src)


def check_alignment(op: str, workspace: Tensor) -> None:
    if workspace.data_ptr() % params.WORKSPACE_ALIGNMENT:
        raise InvalidInput(
            f"{op}: workspace begins at an address that is no multiple of {params.WORKSPACE_ALIGNMENT} "
            f"bytes; give a tensor of its own, or a slice that begins at a multiple"
        )
