# SPDX-License-Identifier: Apache-2.0
"""The split plan of a CUDA decode, and the workspace that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops.call import run
from pagedserve.specs import SPECS
from pagedserve.specs.plan_layout import workspace_bytes

PLAN_DECODE = SPECS["plan_decode"]


def decode_workspace_bytes(
    max_seqs: int, num_q_heads: int, num_kv_heads: int, head_dim: int, *, max_kv_tokens: int, q_len: int = 1
) -> int:
    """Bytes of a workspace that is enough for every decode within these sizes, on any GPU.

    Args:
        max_seqs: sequences of a call, at most.
        num_q_heads, num_kv_heads, head_dim, q_len: as in `paged_decode`.
        max_kv_tokens: the sum of kv_lens, at most. A call with more is legal, and its result the same; it takes longer,
            because the longest sequences are then not shared out among blocks.

    Raises:
        InvalidInput: a size is not a whole number, or too small.

    Cost: about q_len * num_q_heads * (head_dim + 2) / 64 bytes a token: 3 % of the bytes of bf16 keys and values where
    four query heads share one KV head. Beside that a total for each sequence and KV head, up to 1,024 of them: 4 KB
    each where head_dim is 128 and up to eight query heads share one.
    """
    sizes = {"max_seqs": max_seqs, "max_kv_tokens": max_kv_tokens}
    counts = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "q_len": q_len}
    _check("decode_workspace_bytes", sizes, 0)
    _check("decode_workspace_bytes", counts, 1)
    if num_q_heads % num_kv_heads:
        raise InvalidInput(
            f"decode_workspace_bytes: num_q_heads is {num_q_heads}, num_kv_heads {num_kv_heads}; num_q_heads must be a "
            f"multiple of num_kv_heads"
        )
    return workspace_bytes(max_seqs, **counts, max_kv_tokens=max_kv_tokens)


def _check(name: str, sizes: Mapping[str, Any], least: int) -> None:
    for key, value in sizes.items():
        if not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name}: {key} is {value!r}; give a whole number, {least} or above")


def plan_decode(
    kv_lens: Tensor,
    workspace: Tensor,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_len: int = 1,
    window: int | None = None,
    num_blocks: int | None = None,
    backend: str = "auto",
) -> None:
    """Write the plan of a `paged_decode` of these sequences into its workspace.

    Once per step: every layer with these heads and this window runs the same plan. Nothing is read on the host, so
    that a CUDA graph may hold the call and be replayed with other lengths.

    Args:
        kv_lens: [num_seqs] int32, those of the decode. Any number is legal; 0 or below: the row is empty.
        workspace: [workspace_bytes] uint8, written; `decode_workspace_bytes` says how many. It needs no preparation.
            Two decodes that run at once need two.
        num_q_heads, num_kv_heads, head_dim, q_len, window: those of the decode.
        num_blocks: CUDA blocks that share the work, at most 1024; default: 3 for every multiprocessor of the GPU, 12
            for tensors on the CPU. It changes the time of a decode and not a bit of its result.
        backend: "auto", or one of `backends_of("plan_decode")`.

    Raises:
        InvalidInput: shapes or dtypes do not fit, or the workspace is too small; the message says what is needed.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one CUDA block, a few microseconds; writes 64 bytes for each sequence, KV head and block.
    Source: FlashMLA's scheduler; Stream-K, Osama et al. 2023.
    """
    scalars = {
        "num_q_heads": num_q_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "q_len": q_len,
        "window": 0 if window is None else window,
        "num_blocks": 0 if num_blocks is None else num_blocks,
    }
    run(PLAN_DECODE, (kv_lens, workspace), scalars, backend)
