# SPDX-License-Identifier: Apache-2.0
# pages[slot / page_size, slot % page_size] = k, v; a quantised page keeps codes, and amax / largest code as the scale
#
#   k, v                 [num_tokens, num_kv_heads, head_dim]              T
#   k_pages, v_pages     [num_pages, page_size, num_kv_heads, head_dim]    KV    written; int4: head_dim / 2 bytes
#   slot_mapping         [num_tokens]                                      i64   negative: skipped
#   k_scales, v_scales   [num_pages, page_size, num_kv_heads]              f32   written
#
# Work     program = HEADS heads of one token, keys or values
# Traffic  k and v once, in and out
# Bound    memory
# Source   PagedAttention, Kwon et al. 2023
# Oracle   pagedserve/backends/reference/cache.py::append_kv

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.kv_codes import fp8_codes, nearest


@triton.jit
def store_rows(
    x,
    rows,
    scale_rows,
    pages,
    scales,
    taken,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
):
    """Writes heads of one token: float32 [heads, BLOCK_D], zero beyond head_dim.

    rows, scale_rows: where each head starts, [heads] i64; taken: [heads].
    """
    column = tl.arange(0, BLOCK_D)
    mask = taken[:, None] & (column < HEAD_DIM)[None, :]
    place = pages + rows[:, None] + column[None, :]
    if KIND == "float":
        tl.store(place, x.to(pages.dtype.element_ty), mask=mask)
    else:
        LARGEST: tl.constexpr = 127.0 if KIND == "int8" else (448.0 if KIND == "fp8" else 7.0)
        broken = tl.max((x != x).to(tl.int32), 1) > 0  # a maximum drops NaN
        amax = tl.where(broken, float("nan"), tl.max(tl.abs(x), 1))
        scale = tl.math.div_rn(amax, tl.full(amax.shape, LARGEST, tl.float32))
        scale = tl.where(scale == 0.0, 1.0, scale)
        tl.store(scales + scale_rows, scale, mask=taken)
        codes = tl.math.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
        codes = tl.minimum(tl.maximum(codes, -LARGEST), LARGEST)
        if KIND == "fp8":
            tl.store(place, fp8_codes(codes), mask=mask)
        elif KIND == "int8":
            tl.store(place, nearest(codes).to(tl.int8), mask=mask)
        else:
            biased = nearest(codes).to(tl.int32) + 8
            even, odd = tl.split(tl.reshape(biased, [x.shape[0], BLOCK_D // 2, 2]))
            byte = tl.arange(0, BLOCK_D // 2)
            mask = taken[:, None] & (byte < HEAD_DIM // 2)[None, :]
            tl.store(pages + rows[:, None] + byte[None, :], (even | (odd << 4)).to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=["num_heads"])
def append_kv_kernel(
    k,
    v,
    k_pages,
    v_pages,
    slot_mapping,
    k_scales,
    v_scales,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    k_page_stride,
    k_row_stride,
    k_page_head_stride,
    v_page_stride,
    v_row_stride,
    v_page_head_stride,
    ks_page_stride,
    ks_row_stride,
    ks_head_stride,
    vs_page_stride,
    vs_row_stride,
    vs_head_stride,
    num_heads,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,
    KIND: tl.constexpr,
):
    token = tl.program_id(1).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        page, row = slot // PAGE_SIZE, slot % PAGE_SIZE
        heads = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
        taken = heads < num_heads
        column = tl.arange(0, BLOCK_D)
        mask = taken[:, None] & (column < HEAD_DIM)[None, :]
        if tl.program_id(2) == 0:
            x = tl.load(
                k + token * k_token_stride + heads[:, None] * k_head_stride + column[None, :], mask=mask, other=0.0
            )
            rows = page * k_page_stride + row * k_row_stride + heads * k_page_head_stride
            scale_rows = page * ks_page_stride + row * ks_row_stride + heads * ks_head_stride
            store_rows(x.to(tl.float32), rows, scale_rows, k_pages, k_scales, taken, HEAD_DIM, BLOCK_D, KIND)
        else:
            x = tl.load(
                v + token * v_token_stride + heads[:, None] * v_head_stride + column[None, :], mask=mask, other=0.0
            )
            rows = page * v_page_stride + row * v_row_stride + heads * v_page_head_stride
            scale_rows = page * vs_page_stride + row * vs_row_stride + heads * vs_head_stride
            store_rows(x.to(tl.float32), rows, scale_rows, v_pages, v_scales, taken, HEAD_DIM, BLOCK_D, KIND)
