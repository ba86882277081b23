# SPDX-License-Identifier: Apache-2.0
"""Fields of csrc/params.h, by name, for the ops that the CPU and CUDA share.

A pointer field holds a tensor or None; `struct` makes addresses of them.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pagedserve import _C

DTYPES = {
    torch.float32: _C.DType.f32,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
    torch.int8: _C.DType.i8,
    torch.float8_e4m3fn: _C.DType.f8e4m3,
    torch.uint8: _C.DType.i4,
}
WITH_SCALES = (torch.int8, torch.float8_e4m3fn, torch.uint8)
WORKSPACE_ALIGNMENT = 16  # bytes
Fields = dict[str, Any]
Struct = TypeVar("Struct")


def address(tensor: Tensor | None) -> int:
    """A tensor's first element; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def struct(kind: type[Struct], fields: Mapping[str, Any]) -> Struct:
    """A struct of pagedserve._C with these fields."""
    return kind(**{name: _value(value) for name, value in fields.items()})


def _value(value: Any) -> Any:
    if value is None or isinstance(value, Tensor):
        return address(value)
    return struct(_C.KvPages, value) if isinstance(value, dict) else value


def kv_pages(pages: Tensor, scales: Tensor | None) -> Fields:
    """Keys or values of one layer."""
    page_stride, token_stride, head_stride, _ = pages.stride()
    scale_strides = (0, 0, 0) if scales is None else scales.stride()
    return {
        "data": pages,
        "scales": scales,
        "page_stride": page_stride,
        "token_stride": token_stride,
        "head_stride": head_stride,
        "scale_page_stride": scale_strides[0],
        "scale_token_stride": scale_strides[1],
        "scale_head_stride": scale_strides[2],
        "dtype": DTYPES[pages.dtype],
    }


def attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: Tensor | None,
    tree_mask: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    q_len: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> Fields:
    _, page_size, num_kv_heads, _ = k_pages.shape
    return {
        "q": q,
        "out": out,
        "lse": lse,
        "k": kv_pages(k_pages, k_scales),
        "v": kv_pages(v_pages, v_scales),
        "page_table": page_table,
        "kv_lens": kv_lens,
        "q_starts": q_starts,
        "tree_mask": tree_mask,
        "sinks": sinks,
        "alibi_slopes": alibi_slopes,
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "out_token_stride": out.stride(0),
        "out_head_stride": out.stride(1),
        "page_table_stride": page_table.stride(0),
        "num_seqs": len(kv_lens),
        "q_len": q_len,
        "num_q_heads": q.shape[1],
        "num_kv_heads": num_kv_heads,
        "head_dim": q.shape[2],
        "page_size": page_size,
        "window": window,
        "scale": scale,
        "soft_cap": soft_cap,
        "q_dtype": DTYPES[q.dtype],
        "max_pages": page_table.shape[1],
    }


def plan_decode(
    kv_lens: Tensor,
    workspace: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_len: int,
    window: int,
    num_blocks: int,
) -> Fields:
    return {
        "kv_lens": kv_lens,
        "workspace": workspace,
        "workspace_bytes": workspace.numel(),
        "num_seqs": len(kv_lens),
        "num_q_heads": num_q_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "q_len": q_len,
        "window": window,
        "num_blocks": num_blocks,
    }


def merge_states(o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> Fields:
    num_states, num_tokens, num_heads, head_dim = o.shape
    return {
        "states": o,
        "state_lse": lse,
        "out": out,
        "lse": out_lse,
        "num_tokens": num_tokens,
        "num_states": num_states,
        "num_heads": num_heads,
        "head_dim": head_dim,
        "dtype": DTYPES[o.dtype],
    }


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> Fields:
    num_tokens, num_kv_heads, head_dim = k.shape
    return {
        "k": k,
        "v": v,
        "k_pages": kv_pages(k_pages, k_scales),
        "v_pages": kv_pages(v_pages, v_scales),
        "slot_mapping": slot_mapping,
        "num_tokens": num_tokens,
        "k_token_stride": k.stride(0),
        "k_head_stride": k.stride(1),
        "v_token_stride": v.stride(0),
        "v_head_stride": v.stride(1),
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "page_size": k_pages.shape[1],
        "src_dtype": DTYPES[k.dtype],
    }


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> Fields:
    item_bytes = src.element_size()
    return {
        "src": src,
        "dst": dst,
        "src_pages": src_pages,
        "dst_pages": dst_pages,
        "num_copies": len(src_pages),
        "page_bytes": src[:1].numel() * item_bytes,
        "src_page_stride_bytes": src.stride(0) * item_bytes,
        "dst_page_stride_bytes": dst.stride(0) * item_bytes,
    }
