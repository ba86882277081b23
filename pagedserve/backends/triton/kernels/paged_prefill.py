# SPDX-License-Identifier: Apache-2.0
# o[t, h] = softmax(scale * q[t, h] . K[s]) V[s], ragged queries, the last of each sequence, over paged keys
#
#   q, out               [num_tokens, num_q_heads, head_dim]                T
#   k, v                 [num_pages, page_size, num_kv_heads, head_dim]     KV, see kv_codes.py
#   page_table           [num_seqs, max_pages]                              i32    entries past kv_len are never read
#   kv_lens              [num_seqs]                                         i32    not read where there are no queries
#   q_starts             [num_seqs + 1]                                     i32
#   lse                  [num_tokens, num_q_heads]                          f32    natural log, or None
#
# Work     program = (BLOCK_M rows of one sequence, key head): a row is one query head of one token, a group's heads
#          of a token stand side by side. Tiles are numbered without a plan: sequence s begins at tile
#          (q_starts[s] - q_starts[0]) * group_size // BLOCK_M + s, which leaves room for the ragged tile of each.
#          Later tiles see more keys and are launched first
# Sums     f32 online softmax, tiles of keys from position 0 on; a tile of keys that a row does not see changes
#          nothing, so the bits do not depend on how a prompt is cut into chunks
# Traffic  2 * kv_len * head_dim * sizeof(KV) bytes for every BLOCK_M rows
# Bound    matrix instructions: 4 * pairs * num_q_heads * head_dim flops
# Source   Dao 2023 (FlashAttention-2); chunked prefill, Agrawal et al. 2024 (Sarathi-Serve)
# Oracle   pagedserve/backends/reference/attention.py::paged_prefill

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.attention_tiles import attend, averaged, load_queries, store_result
from pagedserve.backends.triton.kernels.operands import Pages, Rows, row_offsets


@triton.jit
def sequence_of(tile, q_starts, num_seqs, GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr):
    """The last sequence that begins at this tile or before."""
    first = tl.load(q_starts)
    low, high = 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(q_starts + middle) - first) * GROUP_SIZE // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["num_seqs", "num_kv_heads", "window", "table_stride"])
def paged_prefill_kernel(
    q: Rows,
    k: Pages,
    v: Pages,
    page_table,
    table_stride,
    kv_lens,
    q_starts,
    sinks,
    alibi_slopes,
    out: Rows,
    lse,
    num_seqs,
    num_kv_heads,
    window,
    scale,
    soft_cap,
    SHAPE: tl.constexpr,
):
    GROUP_SIZE: tl.constexpr = SHAPE.group_size
    BLOCK_M: tl.constexpr = SHAPE.block_m
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    seq = sequence_of(tile, q_starts, num_seqs, GROUP_SIZE, BLOCK_M)
    first_query = tl.load(q_starts + seq)
    q_len = tl.load(q_starts + seq + 1) - first_query
    tile -= (first_query - tl.load(q_starts)) * GROUP_SIZE // BLOCK_M + seq
    if tile * BLOCK_M < q_len * GROUP_SIZE:
        kv_len = tl.maximum(tl.load(kv_lens + seq), 0)
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = row < q_len * GROUP_SIZE
        token = row // GROUP_SIZE
        head = kv_head * GROUP_SIZE + row % GROUP_SIZE
        position = tl.where(valid, kv_len - q_len + token, -1)  # what stands at -1 sees nothing
        flat = (first_query + token).to(tl.int64)
        queries = load_queries(q.base, row_offsets(q, flat, head), valid, SHAPE)
        slopes = None
        if alibi_slopes is not None:
            slopes = tl.load(alibi_slopes + head, mask=valid, other=0.0)

        first_position = kv_len - q_len + tile * BLOCK_M // GROUP_SIZE
        last_row = tl.minimum((tile + 1) * BLOCK_M, q_len * GROUP_SIZE) - 1
        end = tl.minimum(kv_len - q_len + last_row // GROUP_SIZE + 1, kv_len)  # one past the last key that a row sees
        first_seen = tl.maximum(first_position - window + 1, 0)
        begin = 0
        if SHAPE.has_window:
            begin = first_seen // SHAPE.block_n * SHAPE.block_n
            all_seen = begin
        else:
            all_seen = (
                tl.maximum(first_position + 1, 0) // SHAPE.block_n * SHAPE.block_n
            )  # every row sees the keys before this
        largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.full([BLOCK_M], 0.0, tl.float32)
        weighted = tl.full([BLOCK_M, SHAPE.block_d], 0.0, tl.float32)
        for part in tl.static_range(2):  # tiles that every row sees, then those that need a mask
            if part == 1 or not SHAPE.has_window:
                largest, total, weighted = attend(
                    largest,
                    total,
                    weighted,
                    queries,
                    position,
                    slopes,
                    None,
                    k,
                    v,
                    kv_head,
                    page_table + tl.cast(seq, tl.int64) * table_stride,
                    scale,
                    soft_cap,
                    window,
                    first_seen,
                    kv_len,
                    all_seen if part == 1 else begin,
                    end if part == 1 else all_seen,
                    SHAPE,
                    part == 1,
                )
        o, lse2 = averaged(largest, total, weighted, SHAPE.code_unit)
        store_result(o, lse2, sinks, out, lse, flat, head, num_kv_heads * GROUP_SIZE, valid, SHAPE)
