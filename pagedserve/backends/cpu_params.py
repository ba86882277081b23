# SPDX-License-Identifier: Apache-2.0
"""Params structs from tensors, for the ops that a step is made of: what a call runs at once and a program records."""

from typing import Any

import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends.cpu_weight import PackedWeight

DTYPES = {
    torch.float32: _C.DType.f32,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
    torch.int8: _C.DType.i8,
    torch.float8_e4m3fn: _C.DType.f8e4m3,
    torch.uint8: _C.DType.i4,
}
WITH_SCALES = (torch.int8, torch.float8_e4m3fn, torch.uint8)


def address(tensor: Tensor | None) -> int:
    """A tensor's first element; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def kv_pages(pages: Tensor, scales: Tensor | None) -> _C.KvPages:
    """Keys or values of one layer."""
    page_stride, token_stride, head_stride, _ = pages.stride()
    scale_strides = (0, 0, 0) if scales is None else scales.stride()
    return _C.KvPages(
        data=pages.data_ptr(),
        scales=address(scales),
        page_stride=page_stride,
        token_stride=token_stride,
        head_stride=head_stride,
        scale_page_stride=scale_strides[0],
        scale_token_stride=scale_strides[1],
        scale_head_stride=scale_strides[2],
        dtype=DTYPES[pages.dtype],
    )


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
) -> _C.PagedAttentionParams:
    _, page_size, num_kv_heads, _ = k_pages.shape
    return _C.PagedAttentionParams(
        q=q.data_ptr(),
        out=out.data_ptr(),
        lse=address(lse),
        k=kv_pages(k_pages, k_scales),
        v=kv_pages(v_pages, v_scales),
        page_table=page_table.data_ptr(),
        kv_lens=kv_lens.data_ptr(),
        q_starts=address(q_starts),
        tree_mask=address(tree_mask),
        sinks=address(sinks),
        alibi_slopes=address(alibi_slopes),
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        out_token_stride=out.stride(0),
        out_head_stride=out.stride(1),
        page_table_stride=page_table.stride(0),
        num_seqs=len(kv_lens),
        q_len=q_len,
        num_q_heads=q.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=q.shape[2],
        page_size=page_size,
        window=window,
        scale=scale,
        soft_cap=soft_cap,
        q_dtype=DTYPES[q.dtype],
    )


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> _C.AppendKvParams:
    num_tokens, num_kv_heads, head_dim = k.shape
    return _C.AppendKvParams(
        k=k.data_ptr(),
        v=v.data_ptr(),
        k_pages=kv_pages(k_pages, k_scales),
        v_pages=kv_pages(v_pages, v_scales),
        slot_mapping=slot_mapping.data_ptr(),
        num_tokens=num_tokens,
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v_token_stride=v.stride(0),
        v_head_stride=v.stride(1),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=k_pages.shape[1],
        src_dtype=DTYPES[k.dtype],
    )


def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, accumulate: bool
) -> _C.RmsNormParams:
    num_tokens, num_heads, hidden = x.shape
    return _C.RmsNormParams(
        x=x.data_ptr(),
        residual=address(residual),
        out=out.data_ptr(),
        weight=weight.data_ptr(),
        num_tokens=num_tokens,
        x_token_stride=x.stride(0),
        x_head_stride=x.stride(1),
        residual_token_stride=0 if residual is None else residual.stride(0),
        out_token_stride=out.stride(0),
        out_head_stride=out.stride(1),
        num_heads=num_heads,
        hidden=hidden,
        accumulate=accumulate,
        eps=eps,
        dtype=DTYPES[x.dtype],
    )


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool) -> _C.RopeParams:
    num_tokens, num_heads, head_dim = x.shape
    return _C.RopeParams(
        x=x.data_ptr(),
        positions=positions.data_ptr(),
        cos_sin=cos_sin.data_ptr(),
        num_tokens=num_tokens,
        token_stride=x.stride(0),
        head_stride=x.stride(1),
        max_position=cos_sin.shape[0],
        num_heads=num_heads,
        head_dim=head_dim,
        rotary_dim=cos_sin.shape[1],
        interleaved=interleaved,
        dtype=DTYPES[x.dtype],
    )


def act_mul(gate_up: Tensor, out: Tensor, activation: _C.Activation) -> _C.ActMulParams:
    return _C.ActMulParams(
        gate_up=gate_up.data_ptr(),
        out=out.data_ptr(),
        num_tokens=len(out),
        gate_up_stride=gate_up.stride(0),
        out_stride=out.stride(0),
        intermediate=out.shape[1],
        activation=activation,
        dtype=DTYPES[out.dtype],
    )


def linear(
    x: Tensor, weight: Any, pack: PackedWeight, bias: Tensor | None, out: Tensor, accumulate: bool
) -> _C.LinearParams:
    return _C.LinearParams(
        x=x.data_ptr(),
        weight=pack.address,
        bias=address(bias),
        out=out.data_ptr(),
        num_tokens=len(x),
        x_stride=x.stride(0),
        out_stride=out.stride(0),
        in_features=weight.in_features,
        out_features=weight.out_features,
        accumulate=accumulate,
        format=pack.format,
    )


def embed(token_ids: Tensor, weight: Any, pack: PackedWeight, out: Tensor, scale: float) -> _C.EmbedParams:
    return _C.EmbedParams(
        token_ids=token_ids.data_ptr(),
        weight=pack.address,
        out=out.data_ptr(),
        num_tokens=len(token_ids),
        out_stride=out.stride(0),
        vocab_size=weight.out_features,
        hidden=weight.in_features,
        scale=scale,
        format=pack.format,
    )


def take_rows(x: Tensor, rows: Tensor, out: Tensor) -> _C.TakeRowsParams:
    return _C.TakeRowsParams(
        x=x.data_ptr(),
        rows=rows.data_ptr(),
        out=out.data_ptr(),
        num_rows=len(rows),
        x_stride=x.stride(0),
        out_stride=out.stride(0),
        hidden=x.shape[1],
    )


def soft_cap(x: Tensor, cap: float) -> _C.SoftCapParams:
    return _C.SoftCapParams(
        x=x.data_ptr(),
        num_tokens=len(x),
        x_stride=x.stride(0),
        hidden=x.shape[1],
        cap=cap,
    )


def quantize_rows(x: Tensor, quantized: int) -> _C.QuantizeRowsParams:
    return _C.QuantizeRowsParams(
        x=x.data_ptr(), quantized=quantized, num_tokens=len(x), x_stride=x.stride(0), width=x.shape[1]
    )
