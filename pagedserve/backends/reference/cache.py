# SPDX-License-Identifier: Apache-2.0
"""Writing and moving pages, the definition."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pagedserve.backends.operands import AppendKv, RopeAppendKv
from pagedserve.backends.reference.fused import rms_norm, rope, wide

LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.uint8: 7.0}  # uint8 holds int4
INT4_BIAS = 8


def pack_int4(codes: Tensor) -> Tensor:
    """Codes -7..7 [..., n] as bytes [..., n / 2]: code + 8, the even element in the low nibble."""
    nibbles = (codes + INT4_BIAS).to(torch.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def unpack_int4(packed: Tensor) -> Tensor:
    """Codes [..., 2 * n] int8 of bytes [..., n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(torch.int8) - INT4_BIAS


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of x as pages hold them, and a scale per row of the last axis.

    value = code * scale, scale = amax / 127 (int8), amax / 448 (float8) or amax / 7 (int4, in uint8).
    """
    largest = LARGEST_CODE[dtype]
    x = x.to(torch.float32)
    scale = x.abs().amax(dim=-1) / largest
    scale = torch.where(scale == 0, 1.0, scale)
    codes = (x / scale[..., None]).clamp(-largest, largest)
    if dtype == torch.float8_e4m3fn:
        return codes.to(dtype), scale  # rounds to nearest even, as round() does
    codes = codes.round().to(torch.int8)
    return (pack_int4(codes) if dtype == torch.uint8 else codes), scale


def _append(x: Tensor, pages: Tensor, scales: Tensor | None, slots: Tensor, taken: Tensor) -> None:
    page, row = slots // pages.shape[1], slots % pages.shape[1]
    x = x[taken]
    if scales is None:
        pages[page, row] = x.to(pages.dtype)
        return
    pages[page, row], scales[page, row] = quantise(x, pages.dtype)


def append_kv(*operands: Any) -> None:
    """Token t goes to page slot / page_size, row slot % page_size; a negative slot is skipped."""
    _append_both(AppendKv.of("append_kv", *operands))


def _append_both(call: AppendKv) -> None:
    taken = call.slot_mapping >= 0
    slots = call.slot_mapping[taken]
    _append(call.k, call.k_pages, call.k_scales, slots, taken)
    _append(call.v, call.v_pages, call.v_scales, slots, taken)


def rope_append_kv(*operands: Any) -> None:
    """rms_norm of each head where there is a weight, rope, then append_kv, with nothing rounded between them."""
    call = RopeAppendKv.of("rope_append_kv", *operands)
    q, k = wide(call.q).clone(), wide(call.k).clone()
    for x, weight in ((q, call.q_norm), (k, call.k_norm)):
        if weight is not None:
            rms_norm(x, weight, None, x, call.eps, False)
        rope(x, call.positions, call.cos_sin, call.interleaved)
    call.q.copy_(q)
    _append_both(replace(call, k=k))


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
    """dst[dst_pages[i]] = src[src_pages[i]], one after the other: a page may be written, then read."""
    for source, target in zip(src_pages.tolist(), dst_pages.tolist(), strict=True):
        dst[target].copy_(src[source])
