# SPDX-License-Identifier: Apache-2.0
"""What a workspace of paged_decode holds, and how large it must be. csrc/plan/decode_plan.h has the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

SPLIT_TOKENS = 256
GROUP_SPLITS = 16
PIECE_COST = 64  # tokens
MAX_BLOCKS = 1024
BLOCKS_PER_MULTIPROCESSOR = 3
DEFAULT_BLOCKS = 12  # where there is no GPU to ask
ALIGNMENT = 128
TASK_FIELDS = (
    "seq", "kv_head", "first_row", "num_rows", "kv_len", "first_split", "num_splits", "strand_split", "partial",
    "counter", "head_counter", "head_cut", "head_pieces", "tail_counter", "tail_cut", "tail_pieces",
)  # fmt: skip
TASK_BYTES = 4 * len(TASK_FIELDS)
BLOCK_FIELDS = ("num_blocks", "num_tasks", "next_task", "spare")  # and then its first task
BLOCK_BYTES = 4 * len(BLOCK_FIELDS) + TASK_BYTES
HEADER_INTS = ("num_seqs", "num_q_heads", "num_kv_heads", "head_dim", "q_len", "window", "num_blocks", "num_tasks")
HEADER_LONGS = ("wanted_partials", "max_partials", "work", "payload")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Rows:
    """How the q_len * group_size rows of a sequence and KV head are cut into tiles."""

    num_rows: int
    num_tiles: int
    tile_rows: int

    @staticmethod
    def of(num_q_heads: int, num_kv_heads: int, head_dim: int, q_len: int) -> Rows:
        group_size = num_q_heads // num_kv_heads
        if group_size == 1:
            unit, max_rows = 2, 4 if head_dim <= 128 else 2
        else:
            unit, max_rows = 8, 32 if head_dim <= 64 else 16 if head_dim <= 128 else 8
        num_rows = group_size * q_len
        num_tiles = ceil_div(num_rows, max_rows)
        return Rows(num_rows, num_tiles, ceil_div(ceil_div(num_rows, num_tiles), unit) * unit)


@dataclass(frozen=True)
class PlanLayout:
    """Where the parts of a workspace begin, in bytes; all but the tasks, totals and partials are small.

    Attributes:
        totals: of whole strands, num_totals partials.
        partials: of cut strands; what a plan takes at least.
    """

    blocks: int
    counters: int
    cuts: int
    partial_starts: int
    seq_starts: int
    tasks: int
    totals: int
    partials: int
    num_totals: int
    partial_bytes: int

    @staticmethod
    def of(num_seqs: int, num_q_heads: int, num_kv_heads: int, head_dim: int, q_len: int = 1) -> PlanLayout:
        rows = Rows.of(num_q_heads, num_kv_heads, head_dim, q_len)
        num_strands = num_seqs * num_kv_heads * rows.num_tiles
        sizes = (
            4 * 8 + 8 * 4,  # header
            BLOCK_BYTES * MAX_BLOCKS,
            4 * 2 * MAX_BLOCKS,
            8 * (MAX_BLOCKS + 1),
            8 * (MAX_BLOCKS + 1),
            8 * (num_seqs + 1),
            TASK_BYTES * (num_strands + MAX_BLOCKS),
        )
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + ceil_div(size, ALIGNMENT) * ALIGNMENT)
        _, blocks, counters, cuts, partial_starts, seq_starts, tasks, totals = offsets
        partial_bytes, num_totals = 4 * rows.tile_rows * (head_dim + 2), min(num_strands, MAX_BLOCKS)
        partials = totals + num_totals * partial_bytes
        return PlanLayout(
            blocks, counters, cuts, partial_starts, seq_starts, tasks, totals, partials, num_totals, partial_bytes
        )

    def max_partials(self, workspace_bytes: int) -> int:
        """Partials that a workspace has room for; below 0: it cannot hold a plan."""
        left = workspace_bytes - self.partials
        return -1 if left < 0 else min(left // self.partial_bytes, 2**31 - 1 - MAX_BLOCKS)


def workspace_bytes(
    max_seqs: int, num_q_heads: int, num_kv_heads: int, head_dim: int, *, max_kv_tokens: int, q_len: int = 1
) -> int:
    """Bytes of a workspace in which a plan never lacks a partial.

    A strand that is cut has at least two splits, so at least 257 tokens, and as many partials as splits. So
    n cut sequences of t tokens in all have at most (t + 255 n) / 256 partials a strand, and n is at most t / 257.

    Args:
        max_seqs: sequences of a call, at most.
        max_kv_tokens: the sum of kv_lens that is planned for. More is legal: then some sequences stay whole, and the
            call takes longer.
    """
    layout = PlanLayout.of(max_seqs, num_q_heads, num_kv_heads, head_dim, q_len)
    cut_seqs = min(max_seqs, max_kv_tokens // (SPLIT_TOKENS + 1))
    splits = (max_kv_tokens + (SPLIT_TOKENS - 1) * cut_seqs) // SPLIT_TOKENS if cut_seqs else 0
    strands = num_kv_heads * Rows.of(num_q_heads, num_kv_heads, head_dim, q_len).num_tiles
    return layout.partials + splits * strands * layout.partial_bytes
