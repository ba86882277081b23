# SPDX-License-Identifier: Apache-2.0
# o[s, i, h] = softmax(scale * q[s, i, h] . K[s]) V[s], q_len query tokens a sequence
#
#   q, out               [num_seqs * q_len, num_q_heads, head_dim]          T
#   k, v                 [num_pages, page_size, num_kv_heads, head_dim]     KV, see kv_codes.py
#   page_table           [num_seqs, max_pages]                              i32    entries past kv_len are never read
#   kv_lens              [num_seqs]                                         i32    0 and below: o = 0, lse = -inf
#   tree_mask            [num_seqs, q_len, q_len]                           bool   or None: causal
#   lse                  [num_seqs * q_len, num_q_heads]                    f32    natural log, or None
#   split_o, split_lse   [num_seqs, strands, max_splits, rows(, head_dim)]  f32    of sequences of more than one split
#   arrivals             [num_seqs, strands]                                i32    zero before the launch
#
# Work     a strand is one key head and up to BLOCK_M rows of its group's queries; program = (strand, worker, sequence).
#          A sequence's keys are cut every SPLIT tokens from position 0; worker w takes splits w, w + num_workers, ...
# Sums     f32 online softmax per split. The last worker to arrive merges splits in their order, MERGE at a time, so
#          the bits depend on a sequence's rows and keys, and not on its neighbours, num_workers, or who came last
# Traffic  2 * sum(kv_lens) * num_kv_heads * head_dim * sizeof(KV) bytes, and 2 * 4 bytes of split_o for every
#          SPLIT / group_size keys' worth: 3 % at group_size 4, head_dim 128, 16-bit pages
# Bound    memory
# Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding); PagedAttention, Kwon et al. 2023
# Oracle   pagedserve/backends/reference/attention.py::paged_decode

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.attention_tiles import attend, averaged, load_queries, store_result
from pagedserve.backends.triton.kernels.operands import Pages, Rows, row_offsets, store_rows


@triton.jit
def rows_of(row, seq, kv_head, q_len, num_rows, GROUP_SIZE: tl.constexpr):
    """Of rows of a strand: whether each is one, its token within the sequence and within q, and its query head."""
    token = row // GROUP_SIZE
    return row < num_rows, token, (seq * q_len + token).to(tl.int64), kv_head * GROUP_SIZE + row % GROUP_SIZE


@triton.jit
def merge(
    split_o,  # pointer to the strand's first split
    split_lse,
    num_splits,
    sinks,
    out: Rows,
    lse,
    first_row,  # of the strand
    seq,
    kv_head,
    q_len,
    num_rows,
    num_kv_heads,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Adds up a strand's splits in their order, and writes its rows of out and lse."""
    row, column = tl.arange(0, MERGE_ROWS), tl.arange(0, SHAPE.block_d)
    valid, _, flat, head = rows_of(first_row + row, seq, kv_head, q_len, num_rows, SHAPE.group_size)
    valid = valid & (row < ROWS)
    largest = tl.full([MERGE_ROWS], float("-inf"), tl.float32)
    total = tl.full([MERGE_ROWS], 0.0, tl.float32)
    weighted = tl.full([MERGE_ROWS, SHAPE.block_d], 0.0, tl.float32)
    for first in range(0, num_splits, MERGE):
        split = first + tl.arange(0, MERGE)
        there = (split < num_splits)[:, None] & valid[None, :]  # [MERGE, MERGE_ROWS]
        at = split[:, None].to(tl.int64) * ROWS + row[None, :]
        lse2 = tl.load(split_lse + at, mask=there, other=float("-inf"))
        high = tl.maximum(largest, tl.max(lse2, 0))
        shift = tl.where(high == float("-inf"), 0.0, high)
        weight = tl.exp2(lse2 - shift[None, :])
        fade = tl.exp2(largest - shift)
        held = there[:, :, None] & (column < SHAPE.head_dim)[None, None, :]
        o = tl.load(split_o + at[:, :, None] * SHAPE.head_dim + column[None, None, :], mask=held, other=0.0)
        total = total * fade + tl.sum(weight, 0)
        weighted = weighted * fade[:, None] + tl.sum(o * weight[:, :, None], 0)
        largest = high
    o, lse2 = averaged(largest, total, weighted, 1)
    store_result(o, lse2, sinks, out, lse, flat, head, num_kv_heads * SHAPE.group_size, valid, SHAPE)


@triton.jit(
    do_not_specialize=["num_workers", "max_splits", "q_len", "num_rows", "num_kv_heads", "window", "table_stride"]
)
def paged_decode_kernel(
    q: Rows,
    k: Pages,
    v: Pages,
    page_table,
    table_stride,
    kv_lens,
    tree_mask,
    sinks,
    alibi_slopes,
    out: Rows,
    lse,
    split_o,
    split_lse,
    arrivals,
    num_workers,
    max_splits,
    q_len,
    num_rows,
    num_kv_heads,
    window,
    scale,
    soft_cap,
    SHAPE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    MERGE: tl.constexpr,
):
    GROUP_SIZE: tl.constexpr = SHAPE.group_size
    BLOCK_M: tl.constexpr = SHAPE.block_m
    strand, worker, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head, row_tile = strand % num_kv_heads, strand // num_kv_heads
    num_q_heads = num_kv_heads * GROUP_SIZE
    kv_len = tl.maximum(tl.load(kv_lens + seq), 0)
    num_splits = (kv_len + SPLIT - 1) // SPLIT

    in_tile = tl.arange(0, BLOCK_M)
    valid, token, flat, head = rows_of(row_tile * BLOCK_M + in_tile, seq, kv_head, q_len, num_rows, GROUP_SIZE)
    position = tl.where(valid, kv_len - q_len + token, -1)  # what stands at -1 sees nothing

    if (num_splits == 0) & (worker == 0):
        nothing = tl.full([BLOCK_M, SHAPE.block_d], 0.0, tl.float32)
        blind = tl.full([BLOCK_M], float("-inf"), tl.float32)
        store_result(nothing, blind, None, out, lse, flat, head, num_q_heads, valid, SHAPE)
    if worker < num_splits:
        queries = load_queries(q.base, row_offsets(q, flat, head), valid, SHAPE)
        slopes = None
        if alibi_slopes is not None:
            slopes = tl.load(alibi_slopes + head, mask=valid, other=0.0)
        tree_rows = None
        if tree_mask is not None:
            tree_rows = tree_mask + flat * q_len
        first_seen = kv_len - q_len + row_tile * BLOCK_M // GROUP_SIZE - window + 1
        strands = (seq * tl.num_programs(0) + strand).to(tl.int64) * max_splits * ROWS
        num_done = 0
        for split in range(worker, num_splits, num_workers):
            begin = split * SPLIT
            if SHAPE.has_window:
                begin = tl.maximum(begin, first_seen // SHAPE.block_n * SHAPE.block_n)
            largest, total, weighted = attend(
                tl.full([BLOCK_M], float("-inf"), tl.float32),
                tl.full([BLOCK_M], 0.0, tl.float32),
                tl.full([BLOCK_M, SHAPE.block_d], 0.0, tl.float32),
                queries,
                position,
                slopes,
                tree_rows,
                k,
                v,
                kv_head,
                page_table + seq.to(tl.int64) * table_stride,
                scale,
                soft_cap,
                window,
                first_seen,
                kv_len - q_len,
                begin,
                tl.minimum((split + 1) * SPLIT, kv_len),
                SHAPE,
                True,
            )
            o, lse2 = averaged(largest, total, weighted, SHAPE.code_unit)
            if num_splits == 1:
                store_result(o, lse2, sinks, out, lse, flat, head, num_q_heads, valid, SHAPE)
            else:
                own = strands + split * ROWS + in_tile
                store_rows(split_o, own * SHAPE.head_dim, valid, o, SHAPE.head_dim, SHAPE.block_d)
                tl.store(split_lse + own, lse2, mask=valid)
            num_done += 1
        if num_splits > 1:
            tl.debug_barrier()  # every thread's splits are stored before the arrival is announced
            before = tl.atomic_add(arrivals + seq * tl.num_programs(0) + strand, num_done, sem="acq_rel")
            if before + num_done == num_splits:
                merge(
                    split_o + strands * SHAPE.head_dim,
                    split_lse + strands,
                    num_splits,
                    sinks,
                    out,
                    lse,
                    row_tile * BLOCK_M,
                    seq,
                    kv_head,
                    q_len,
                    num_rows,
                    num_kv_heads,
                    SHAPE,
                    ROWS,
                    MERGE_ROWS,
                    MERGE,
                )
