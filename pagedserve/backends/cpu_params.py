# SPDX-License-Identifier: Apache-2.0
"""Params structs from tensors, for the ops that only the CPU has: what a call runs at once and a program records."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from pagedserve import _C
from pagedserve.backends import params as shared
from pagedserve.backends.cpu_weight import PackedWeight
from pagedserve.backends.operands import AppendKv, Attention, Sample
from pagedserve.backends.params import DTYPES, address, struct


def attention(call: Attention, *, bf16_products: bool) -> _C.PagedAttentionParams:
    return struct(_C.PagedAttentionParams, shared.attention(call) | {"bf16_products": bf16_products})


def append_kv(call: AppendKv) -> _C.AppendKvParams:
    return struct(_C.AppendKvParams, shared.append_kv(call))


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


def sample(call: Sample) -> _C.SampleParams:
    logits = call.logits
    tensors = {field.name: getattr(call, field.name).data_ptr() for field in fields(call)}
    return _C.SampleParams(
        **tensors,
        logits_stride=logits.stride(0),
        num_rows=logits.shape[0],
        vocab_size=logits.shape[1],
        num_top=call.top_tokens.shape[1],
    )
