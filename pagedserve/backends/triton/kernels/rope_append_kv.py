# SPDX-License-Identifier: Apache-2.0
# q = rope(norm(q)); pages[slot / page_size, slot % page_size] = rope(norm(k)), v; norms where there is a weight
#
#   q                    [num_tokens, num_q_heads, head_dim]               T     written
#   k, v                 [num_tokens, num_kv_heads, head_dim]              T
#   positions            [num_tokens]                                      i32
#   cos_sin              [max_position, rotary_dim]                        f32   cosines, then sines
#   slot_mapping         [num_tokens]                                      i64   negative: k and v are skipped
#   k_pages, v_pages     [num_pages, page_size, num_kv_heads, head_dim]    KV    written, with their scales
#   q_norm, k_norm       [head_dim]                                        f32   or None
#
# Work     program = HEADS heads of one token: of queries, of keys or of values. A rotated element needs its partner,
#          which is read a second time, from L1: so every element stands in one place from its norm to its code
# Sums     f32, rounded once, to q's type or to a page's
# Traffic  q in and out, k and v in, pages out
# Bound    memory; one launch in place of five, each of which takes longer to start than this does to run
# Source   Su et al. 2021 (RoFormer); Zhang and Sennrich 2019; QK-norm, Henry et al. 2020
# Oracle   pagedserve/backends/reference/cache.py::rope_append_kv

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.append_kv import write_heads
from pagedserve.backends.triton.kernels.operands import Pages, Rows, load_rows, row_offsets, store_rows


@triton.jit
def rotated_heads(
    base,
    starts,  # [heads] i64, where each starts
    taken,  # [heads]
    norm,
    eps,
    cos_sin,  # pointer to the token's row
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Heads of one token, normed and rotated, [heads, BLOCK_D] f32; zero beyond head_dim."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    column = tl.arange(0, BLOCK_D)
    turned = column < ROTARY_DIM
    if INTERLEAVED:
        first, partner, angle = column % 2 == 0, column ^ 1, column // 2
    else:
        first = column < HALF
        partner, angle = tl.where(first, column + HALF, column - HALF), column % HALF
    x = load_rows(base, starts, taken, HEAD_DIM, BLOCK_D).to(tl.float32)
    place = base + starts[:, None] + partner[None, :]
    y = tl.load(place, mask=taken[:, None] & turned[None, :], other=0.0).to(tl.float32)
    if norm is not None:
        factor = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x = x * factor * tl.load(norm + column, mask=column < HEAD_DIM, other=0.0)[None, :]
        y = y * factor * tl.load(norm + partner, mask=turned, other=0.0)[None, :]
    cos = tl.load(cos_sin + angle, mask=turned, other=1.0)
    sin = tl.load(cos_sin + HALF + angle, mask=turned, other=0.0)
    return x * cos[None, :] + y * tl.where(first, -sin, sin)[None, :]


@triton.jit(do_not_specialize=["num_q_heads", "num_kv_heads"])
def rope_append_kv_kernel(
    q: Rows,
    k: Rows,
    v: Rows,
    positions,
    cos_sin,
    slot_mapping,
    k_pages: Pages,
    v_pages: Pages,
    q_norm,
    k_norm,
    num_q_heads,
    num_kv_heads,
    eps,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,
    KIND: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_blocks, kv_blocks = (num_q_heads + HEADS - 1) // HEADS, (num_kv_heads + HEADS - 1) // HEADS
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM
    if block < q_blocks:
        heads = block * HEADS + tl.arange(0, HEADS)
        taken = heads < num_q_heads
        starts = row_offsets(q, token, heads)
        x = rotated_heads(q.base, starts, taken, q_norm, eps, angles, HEAD_DIM, ROTARY_DIM, BLOCK_D, INTERLEAVED)
        tl.debug_barrier()  # in place: no thread writes before every thread has read its partners
        store_rows(q.base, starts, taken, x, HEAD_DIM, BLOCK_D)
    else:
        slot = tl.load(slot_mapping + token)
        if slot >= 0:
            heads = (block - q_blocks) % kv_blocks * HEADS + tl.arange(0, HEADS)
            taken = heads < num_kv_heads
            if block < q_blocks + kv_blocks:
                starts = row_offsets(k, token, heads)
                x = rotated_heads(
                    k.base, starts, taken, k_norm, eps, angles, HEAD_DIM, ROTARY_DIM, BLOCK_D, INTERLEAVED
                )
                write_heads(x, slot, heads, taken, k_pages, PAGE_SIZE, HEAD_DIM, BLOCK_D, KIND)
            else:
                x = load_rows(v.base, row_offsets(v, token, heads), taken, HEAD_DIM, BLOCK_D).to(tl.float32)
                write_heads(x, slot, heads, taken, v_pages, PAGE_SIZE, HEAD_DIM, BLOCK_D, KIND)
