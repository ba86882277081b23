# SPDX-License-Identifier: Apache-2.0
# Online softmax over the tiles of some keys, which decode and prefill share
#
# A row is one query head of one token; rows of a program share a key head. Logits, in this order and in base 2:
#
#   logit = scale * q . k;  logit = cap * tanh(logit / cap);  logit += slope * (key - position);  masked: -inf
#
# Sums     f32; a tile's keys in the matrix instruction's order, tiles one after another
# Source   Milakov and Gimelshein 2018 (online softmax); Dao 2023 (FlashAttention-2)

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.kv_codes import load_values

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_queries(q, rows, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):
    """Rows of q, [rows, BLOCK_D] of DOT; rows: where each starts, i64."""
    column = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (column < HEAD_DIM)[None, :]
    return tl.load(q + rows[:, None] + column[None, :], mask=mask, other=0.0).to(DOT)


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def attend(
    largest,  # [rows] f32, the maximum so far, base 2
    total,  # [rows] f32, the sum of exponentials so far
    weighted,  # [rows, BLOCK_D] f32, the weighted values so far
    q,  # [rows, BLOCK_D] of DOT
    position,  # [rows] i32, of each row's token
    slopes,  # [rows] f32, or None
    tree_rows,  # [rows] pointers to each row's part of tree_mask, or None
    k_pages,
    v_pages,
    pages,  # pointer to the sequence's row of page_table
    k_scales,
    v_scales,
    k_page_stride,
    k_row_stride,
    v_page_stride,
    v_row_stride,
    ks_page_stride,
    ks_row_stride,
    vs_page_stride,
    vs_row_stride,
    scale,
    soft_cap,
    window,
    first_seen,  # the first key that any row sees
    first_new,  # the first key that is also a query
    begin,  # of the keys, a multiple of BLOCK_N
    end,  # of the keys
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KIND: tl.constexpr,
    CODE_UNIT: tl.constexpr,  # a power of two near the largest code: keeps p * v_scale within float16
    CONVERTS_FP8: tl.constexpr,
    DOT: tl.constexpr,  # what q . k multiplies
    DOT_V: tl.constexpr,  # what weights times values multiplies
    HAS_SOFT_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MASKED: tl.constexpr,  # whether a key may be hidden from a row
):
    for start in range(begin, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        read = key < end
        if HAS_WINDOW:
            read = read & (key >= first_seen)
        page = tl.load(pages + key // PAGE_SIZE, mask=read, other=0).to(tl.int64)
        in_page = key % PAGE_SIZE
        k = load_values(
            k_pages, page * k_page_stride + in_page * k_row_stride, read, HEAD_DIM, BLOCK_D, KIND, CONVERTS_FP8, DOT
        )
        logit = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if KIND != "float":
            k_scale = tl.load(k_scales + page * ks_page_stride + in_page * ks_row_stride, mask=read, other=0.0)
            logit = logit * k_scale[None, :]
        if HAS_SOFT_CAP:
            logit = soft_cap * tanh(logit / soft_cap)
        if slopes is not None:
            logit += slopes[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
        logit = logit * LOG2E
        if MASKED:
            visible = read[None, :] & (position >= 0)[:, None]
            if tree_rows is not None:
                place = tl.maximum(key - first_new, 0)
                new = (key >= first_new) & read
                drawn = tl.load(tree_rows[:, None] + place[None, :], mask=new[None, :] & visible, other=0)
                visible = visible & ((drawn != 0) | (key < first_new)[None, :])
            else:
                visible = visible & (key[None, :] <= position[:, None])
            if HAS_WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
            logit = tl.where(visible, logit, float("-inf"))
        tile_largest = tl.maximum(largest, tl.max(logit, 1))
        # -inf - -inf is NaN: rows that see nothing yet keep a maximum of -inf and add nothing.
        shift = tl.where(tile_largest == float("-inf"), 0.0, tile_largest)
        weight = tl.exp2(logit - shift[:, None])
        fade = tl.exp2(largest - shift)
        total = total * fade + tl.sum(weight, 1)
        v = load_values(
            v_pages, page * v_page_stride + in_page * v_row_stride, read, HEAD_DIM, BLOCK_D, KIND, CONVERTS_FP8, DOT_V
        )
        if KIND != "float":
            v_scale = tl.load(v_scales + page * vs_page_stride + in_page * vs_row_stride, mask=read, other=0.0)
            weight = weight * (v_scale * CODE_UNIT)[None, :]
        if tree_rows is not None:
            seen = tl.max(visible.to(tl.int32), 0) > 0
            v = tl.where(seen[:, None], v, tl.zeros_like(v))  # a key nobody sees may hold anything
        weighted = weighted * fade[:, None] + tl.dot(weight.to(DOT_V), v, input_precision="ieee")
        largest = tile_largest
    return largest, total, weighted


@triton.jit
def averaged(largest, total, weighted, CODE_UNIT: tl.constexpr):
    """o [rows, BLOCK_D] and lse [rows], base 2; 0 and -inf for rows that saw nothing."""
    saw = total > 0.0
    o = weighted / (tl.where(saw, total, 1.0) * CODE_UNIT)[:, None]
    o = tl.where((total == 0.0)[:, None], 0.0, o)
    return o, tl.where(total == 0.0, float("-inf"), largest + tl.log2(total))


@triton.jit
def store_result(
    o,
    lse2,
    sinks,  # [rows] pointers, or None
    out,
    out_rows,
    lse,
    lse_rows,
    valid,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes rows of out and lse. A sink is one more key without a value, for rows that saw any."""
    if sinks is not None:
        sink = tl.load(sinks, mask=valid, other=0.0) * LOG2E
        high = tl.maximum(lse2, sink)
        merged = high + tl.log2(tl.exp2(lse2 - high) + tl.exp2(sink - high))
        saw = lse2 != float("-inf")
        o = o * tl.where(saw, tl.exp2(lse2 - merged), 0.0)[:, None]
        lse2 = tl.where(saw, merged, lse2)
    column = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(out + out_rows[:, None] + column[None, :], o.to(out.dtype.element_ty), mask=mask)
    if lse is not None:
        tl.store(lse + lse_rows, lse2 * LN2, mask=valid)
