# SPDX-License-Identifier: Apache-2.0
# o[s, i, h] = softmax(scale * q[s, i, h] . K[s]) V[s], q_len query tokens a sequence
#
#   q, out               [num_seqs * q_len, num_q_heads, head_dim]          T
#   k_pages, v_pages     [num_pages, page_size, num_kv_heads, head_dim]     KV, see kv_codes.py
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
    first_row,  # of the strand
    seq,
    kv_head,
    q_len,
    num_rows,
    num_kv_heads,
    sinks,
    out,
    out_token_stride,
    out_head_stride,
    lse,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Adds up a strand's splits in their order, and writes its rows of out and lse."""
    row, column = tl.arange(0, MERGE_ROWS), tl.arange(0, BLOCK_D)
    valid, _, flat, head = rows_of(first_row + row, seq, kv_head, q_len, num_rows, GROUP_SIZE)
    valid = valid & (row < ROWS)
    largest = tl.full([MERGE_ROWS], float("-inf"), tl.float32)
    total = tl.full([MERGE_ROWS], 0.0, tl.float32)
    weighted = tl.full([MERGE_ROWS, BLOCK_D], 0.0, tl.float32)
    for first in range(0, num_splits, MERGE):
        split = first + tl.arange(0, MERGE)
        there = (split < num_splits)[:, None] & valid[None, :]  # [MERGE, MERGE_ROWS]
        at = split[:, None].to(tl.int64) * ROWS + row[None, :]
        lse2 = tl.load(split_lse + at, mask=there, other=float("-inf"))
        high = tl.maximum(largest, tl.max(lse2, 0))
        shift = tl.where(high == float("-inf"), 0.0, high)
        weight = tl.exp2(lse2 - shift[None, :])
        fade = tl.exp2(largest - shift)
        held = there[:, :, None] & (column < HEAD_DIM)[None, None, :]
        o = tl.load(split_o + at[:, :, None] * HEAD_DIM + column[None, None, :], mask=held, other=0.0)
        total = total * fade + tl.sum(weight, 0)
        weighted = weighted * fade[:, None] + tl.sum(o * weight[:, :, None], 0)
        largest = high
    o, lse2 = averaged(largest, total, weighted, 1)
    row_sinks = None
    if sinks is not None:
        row_sinks = sinks + head
    out_rows = flat * out_token_stride + head * out_head_stride
    lse_rows = flat * (num_kv_heads * GROUP_SIZE) + head
    store_result(o, lse2, row_sinks, out, out_rows, lse, lse_rows, valid, HEAD_DIM, BLOCK_D)


@triton.jit(
    do_not_specialize=["num_workers", "max_splits", "q_len", "num_rows", "num_kv_heads", "window", "table_stride"]
)
def paged_decode_kernel(
    q,
    k_pages,
    v_pages,
    page_table,
    kv_lens,
    tree_mask,
    sinks,
    alibi_slopes,
    k_scales,
    v_scales,
    out,
    lse,
    split_o,
    split_lse,
    arrivals,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    table_stride,
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
    num_workers,
    max_splits,
    q_len,
    num_rows,
    num_kv_heads,
    window,
    scale,
    soft_cap,
    GROUP_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    MERGE: tl.constexpr,
    KIND: tl.constexpr,
    CODE_UNIT: tl.constexpr,
    CONVERTS_FP8: tl.constexpr,
    DOT: tl.constexpr,
    DOT_V: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    strand, worker, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head, row_tile = strand % num_kv_heads, strand // num_kv_heads
    kv_len = tl.maximum(tl.load(kv_lens + seq), 0)
    num_splits = (kv_len + SPLIT - 1) // SPLIT

    in_tile = tl.arange(0, BLOCK_M)
    valid, token, flat, head = rows_of(row_tile * BLOCK_M + in_tile, seq, kv_head, q_len, num_rows, GROUP_SIZE)
    position = tl.where(valid, kv_len - q_len + token, -1)  # what stands at -1 sees nothing
    out_rows = flat * out_token_stride + head * out_head_stride
    lse_rows = flat * (num_kv_heads * GROUP_SIZE) + head
    row_sinks = None
    if sinks is not None:
        row_sinks = sinks + head

    if (num_splits == 0) & (worker == 0):
        nothing = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
        blind = tl.full([BLOCK_M], float("-inf"), tl.float32)
        store_result(nothing, blind, None, out, out_rows, lse, lse_rows, valid, HEAD_DIM, BLOCK_D)
    if worker < num_splits:
        queries = load_queries(q, flat * q_token_stride + head * q_head_stride, valid, HEAD_DIM, BLOCK_D, DOT)
        slopes = None
        if alibi_slopes is not None:
            slopes = tl.load(alibi_slopes + head, mask=valid, other=0.0)
        tree_rows = None
        if tree_mask is not None:
            tree_rows = tree_mask + flat * q_len
        k_scale_base, v_scale_base = k_scales, v_scales
        if KIND != "float":
            k_scale_base = k_scales + kv_head * ks_head_stride
            v_scale_base = v_scales + kv_head * vs_head_stride
        first_seen = kv_len - q_len + row_tile * BLOCK_M // GROUP_SIZE - window + 1
        strands = (seq * tl.num_programs(0) + strand).to(tl.int64) * max_splits * ROWS
        num_done = 0
        for split in range(worker, num_splits, num_workers):
            begin = split * SPLIT
            if HAS_WINDOW:
                begin = tl.maximum(begin, first_seen // BLOCK_N * BLOCK_N)
            largest, total, weighted = attend(
                tl.full([BLOCK_M], float("-inf"), tl.float32),
                tl.full([BLOCK_M], 0.0, tl.float32),
                tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32),
                queries,
                position,
                slopes,
                tree_rows,
                k_pages + kv_head.to(tl.int64) * k_page_head_stride,
                v_pages + kv_head.to(tl.int64) * v_page_head_stride,
                page_table + seq.to(tl.int64) * table_stride,
                k_scale_base,
                v_scale_base,
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
                first_seen,
                kv_len - q_len,
                begin,
                tl.minimum((split + 1) * SPLIT, kv_len),
                PAGE_SIZE,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_N,
                KIND,
                CODE_UNIT,
                CONVERTS_FP8,
                DOT,
                DOT_V,
                HAS_SOFT_CAP,
                HAS_WINDOW,
                True,
            )
            o, lse2 = averaged(largest, total, weighted, CODE_UNIT)
            if num_splits == 1:
                store_result(o, lse2, row_sinks, out, out_rows, lse, lse_rows, valid, HEAD_DIM, BLOCK_D)
            else:
                own = strands + split * ROWS + in_tile
                column = tl.arange(0, BLOCK_D)
                mask = valid[:, None] & (column < HEAD_DIM)[None, :]
                tl.store(split_o + own[:, None] * HEAD_DIM + column[None, :], o, mask=mask)
                tl.store(split_lse + own, lse2, mask=valid)
            num_done += 1
        if num_splits > 1:
            tl.debug_barrier()  # every thread's splits are stored before the arrival is announced
            before = tl.atomic_add(arrivals + seq * tl.num_programs(0) + strand, num_done, sem="acq_rel")
            if before + num_done == num_splits:
                merge(
                    split_o + strands * HEAD_DIM,
                    split_lse + strands,
                    num_splits,
                    row_tile * BLOCK_M,
                    seq,
                    kv_head,
                    q_len,
                    num_rows,
                    num_kv_heads,
                    sinks,
                    out,
                    out_token_stride,
                    out_head_stride,
                    lse,
                    GROUP_SIZE,
                    HEAD_DIM,
                    BLOCK_D,
                    ROWS,
                    MERGE_ROWS,
                    MERGE,
                )
