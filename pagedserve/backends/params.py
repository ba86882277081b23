# SPDX-License-Identifier: Apache-2.0
"""Fields of csrc/params.h, by name, for the ops that the CPU and CUDA share.

A pointer field holds a tensor or None; `struct` makes addresses of them.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends.operands import AppendKv, Attention, PlanDecode

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


def attention(call: Attention) -> Fields:
    _, page_size, num_kv_heads, _ = call.k_pages.shape
    return {
        "q": call.q,
        "out": call.out,
        "lse": call.lse,
        "k": kv_pages(call.k_pages, call.k_scales),
        "v": kv_pages(call.v_pages, call.v_scales),
        "page_table": call.page_table,
        "kv_lens": call.kv_lens,
        "q_starts": call.q_starts,
        "tree_mask": call.tree_mask,
        "sinks": call.sinks,
        "alibi_slopes": call.alibi_slopes,
        "q_token_stride": call.q.stride(0),
        "q_head_stride": call.q.stride(1),
        "out_token_stride": call.out.stride(0),
        "out_head_stride": call.out.stride(1),
        "page_table_stride": call.page_table.stride(0),
        "num_seqs": len(call.kv_lens),
        "q_len": call.q_len,
        "num_q_heads": call.q.shape[1],
        "num_kv_heads": num_kv_heads,
        "head_dim": call.q.shape[2],
        "page_size": page_size,
        "window": call.window,
        "scale": call.scale,
        "soft_cap": call.soft_cap,
        "q_dtype": DTYPES[call.q.dtype],
        "max_pages": call.page_table.shape[1],
    }


def plan_decode(call: PlanDecode, num_blocks: int) -> Fields:
    return {
        "kv_lens": call.kv_lens,
        "workspace": call.workspace,
        "workspace_bytes": call.workspace.numel(),
        "num_seqs": len(call.kv_lens),
        "num_q_heads": call.num_q_heads,
        "num_kv_heads": call.num_kv_heads,
        "head_dim": call.head_dim,
        "q_len": call.q_len,
        "window": call.window,
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


def append_kv(call: AppendKv) -> Fields:
    num_tokens, num_kv_heads, head_dim = call.k.shape
    return {
        "k": call.k,
        "v": call.v,
        "k_pages": kv_pages(call.k_pages, call.k_scales),
        "v_pages": kv_pages(call.v_pages, call.v_scales),
        "slot_mapping": call.slot_mapping,
        "num_tokens": num_tokens,
        "k_token_stride": call.k.stride(0),
        "k_head_stride": call.k.stride(1),
        "v_token_stride": call.v.stride(0),
        "v_head_stride": call.v.stride(1),
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "page_size": call.k_pages.shape[1],
        "src_dtype": DTYPES[call.k.dtype],
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
