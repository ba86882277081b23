# SPDX-License-Identifier: Apache-2.0
# Online softmax over the tiles of some keys, which decode and prefill share
#
# A row is one query head of one token; rows of a program share a key head. Logits, in this order and in base 2:
#
#   logit = scale * q . k;  logit = cap * tanh(logit / cap);  logit += slope * (key - position);  masked: -inf
#
# Sums     f32; a tile's keys in the matrix instruction's order, tiles one after another
# Source   Milakov and Gimelshein 2018 (online softmax); Dao 2023 (FlashAttention-2)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.kv_codes import load_values
from pagedserve.backends.triton.kernels.operands import Pages, Rows, load_rows, row_offsets, store_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class AttentionShape(NamedTuple):
    """What attention is compiled for."""

    group_size: int
    page_size: int
    head_dim: int
    block_m: int  # rows of a program
    block_n: int  # keys of a tile
    block_d: int  # a power of two, head_dim or more
    kind: str  # of pages, see kv_codes.py
    code_unit: float  # a power of two near the largest code: keeps p * v_scale within float16
    converts_fp8: bool
    dot: Any  # what q . k multiplies
    dot_v: Any  # what weights times values multiplies
    has_soft_cap: bool
    has_window: bool


@triton.jit
def load_queries(q, starts, valid, SHAPE: tl.constexpr):
    """Rows of q, [rows, block_d] of dot; starts: where each starts, i64."""
    return load_rows(q, starts, valid, SHAPE.head_dim, SHAPE.block_d).to(SHAPE.dot)


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def load_scales(pages: Pages, page, in_page, head, read):
    """Scales of keys or values, [keys] f32; zero where not read."""
    starts = page * pages.scale_page_stride + in_page * pages.scale_row_stride
    return tl.load(pages.scales + head * pages.scale_head_stride + starts, mask=read, other=0.0)


@triton.jit
def attend(
    largest,  # [rows] f32, the maximum so far, base 2
    total,  # [rows] f32, the sum of exponentials so far
    weighted,  # [rows, block_d] f32, the weighted values so far
    q,  # [rows, block_d] of dot
    position,  # [rows] i32, of each row's token
    slopes,  # [rows] f32, or None
    tree_rows,  # [rows] pointers to each row's part of tree_mask, or None
    k: Pages,
    v: Pages,
    kv_head,
    page_ids,  # pointer to the sequence's row of page_table
    scale,
    soft_cap,
    window,
    first_seen,  # the first key that any row sees
    first_new,  # the first key that is also a query
    begin,  # of the keys, a multiple of block_n
    end,  # of the keys
    SHAPE: tl.constexpr,  # an AttentionShape
    MASKED: tl.constexpr,  # whether a key may be hidden from a row
):
    k_base = k.base + kv_head.to(tl.int64) * k.head_stride
    v_base = v.base + kv_head.to(tl.int64) * v.head_stride
    for start in range(begin, end, SHAPE.block_n):
        key = start + tl.arange(0, SHAPE.block_n)
        read = key < end
        if SHAPE.has_window:
            read = read & (key >= first_seen)
        page = tl.load(page_ids + key // SHAPE.page_size, mask=read, other=0).to(tl.int64)
        in_page = key % SHAPE.page_size
        keys = load_values(k_base, page * k.page_stride + in_page * k.row_stride, read, SHAPE, SHAPE.dot)
        logit = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if SHAPE.kind != "float":
            logit = logit * load_scales(k, page, in_page, kv_head, read)[None, :]
        if SHAPE.has_soft_cap:
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
            if SHAPE.has_window:
                visible = visible & (key[None, :] > position[:, None] - window)
            logit = tl.where(visible, logit, float("-inf"))
        tile_largest = tl.maximum(largest, tl.max(logit, 1))
        # -inf - -inf is NaN: rows that see nothing yet keep a maximum of -inf and add nothing.
        shift = tl.where(tile_largest == float("-inf"), 0.0, tile_largest)
        weight = tl.exp2(logit - shift[:, None])
        fade = tl.exp2(largest - shift)
        total = total * fade + tl.sum(weight, 1)
        values = load_values(v_base, page * v.page_stride + in_page * v.row_stride, read, SHAPE, SHAPE.dot_v)
        if SHAPE.kind != "float":
            weight = weight * (load_scales(v, page, in_page, kv_head, read) * SHAPE.code_unit)[None, :]
        if tree_rows is not None:
            seen = tl.max(visible.to(tl.int32), 0) > 0
            values = tl.where(seen[:, None], values, tl.zeros_like(values))  # a key nobody sees may hold anything
        weighted = weighted * fade[:, None] + tl.dot(weight.to(SHAPE.dot_v), values, input_precision="ieee")
        largest = tile_largest
    return largest, total, weighted


@triton.jit
def averaged(largest, total, weighted, CODE_UNIT: tl.constexpr):
    """o [rows, block_d] and lse [rows], base 2; 0 and -inf for rows that saw nothing."""
    saw = total > 0.0
    o = weighted / (tl.where(saw, total, 1.0) * CODE_UNIT)[:, None]
    o = tl.where((total == 0.0)[:, None], 0.0, o)
    return o, tl.where(total == 0.0, float("-inf"), largest + tl.log2(total))


@triton.jit
def store_result(
    o,
    lse2,
    sinks,  # [num_q_heads] f32, or None
    out: Rows,
    lse,
    flat,  # [rows] i64, of each row's token within out
    head,  # [rows]
    num_q_heads,
    valid,
    SHAPE: tl.constexpr,
):
    """Writes rows of out and lse. A sink is one more key without a value, for rows that saw any."""
    if sinks is not None:
        sink = tl.load(sinks + head, mask=valid, other=0.0) * LOG2E
        high = tl.maximum(lse2, sink)
        merged = high + tl.log2(tl.exp2(lse2 - high) + tl.exp2(sink - high))
        saw = lse2 != float("-inf")
        o = o * tl.where(saw, tl.exp2(lse2 - merged), 0.0)[:, None]
        lse2 = tl.where(saw, merged, lse2)
    store_rows(out.base, row_offsets(out, flat, head), valid, o, SHAPE.head_dim, SHAPE.block_d)
    if lse is not None:
        tl.store(lse + flat * num_q_heads + head, lse2 * LN2, mask=valid)
