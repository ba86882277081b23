# SPDX-License-Identifier: Apache-2.0
"""The split plan of a CUDA decode, the definition: lays every split on the line and asks each where it stands."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from pagedserve.backends.operands import PlanDecode
from pagedserve.specs.plan_layout import (
    BLOCK_BYTES,
    DEFAULT_BLOCKS,
    GROUP_SPLITS,
    MAX_BLOCKS,
    PIECE_COST,
    SPLIT_TOKENS,
    TASK_BYTES,
    PlanLayout,
    Rows,
    ceil_div,
)

INT = torch.int32
NO_GROUP = (-1, 0, 0)


def strand_splits(length: int, q_len: int, window: int) -> tuple[int, int]:
    """The splits that any of a sequence's queries sees: first and end."""
    first = max(length - q_len - window + 1, 0) // SPLIT_TOKENS if window > 0 and length > 0 else 0
    return first, ceil_div(max(length, 0), SPLIT_TOKENS)


def plan_decode(*operands: Any) -> None:
    """Writes header, blocks, counters, cuts, partial_starts, seq_starts and tasks; partials stay as they are."""
    call = PlanDecode.of("plan_decode", *operands)
    kv_lens, workspace, q_len, window = call.kv_lens, call.workspace, call.q_len, call.window
    num_q_heads, num_kv_heads, head_dim = call.num_q_heads, call.num_kv_heads, call.head_dim
    num_blocks = call.num_blocks or DEFAULT_BLOCKS
    rows = Rows.of(num_q_heads, num_kv_heads, head_dim, q_len)
    num_seqs, strands_of_seq = len(kv_lens), num_kv_heads * rows.num_tiles
    layout = PlanLayout.of(num_seqs, num_q_heads, num_kv_heads, head_dim, q_len)
    max_partials = layout.max_partials(workspace.numel())

    # The line: where sequences, strands and splits begin.
    lens = [max(length, 0) for length in kv_lens.tolist()]
    spans = [strand_splits(length, q_len, window) for length in lens]
    works = [length - first * SPLIT_TOKENS + PIECE_COST for length, (first, _) in zip(lens, spans, strict=True)]
    seq_starts, starts = [0], []  # starts: of every split, by strand; a strand without splits has one start
    for work, (first, end) in zip(works, spans, strict=True):
        for strand in range(strands_of_seq):
            begin = seq_starts[-1] + strand * work
            starts.append([begin + i * SPLIT_TOKENS for i in range(max(end - first, 1))])
        seq_starts.append(seq_starts[-1] + strands_of_seq * work)
    payload = max(ceil_div(seq_starts[-1], num_blocks), SPLIT_TOKENS)
    blocks = [[start // payload for start in strand] for strand in starts]

    # Cuts and partials, then strands that there is no room to cut.
    lasts = [strand[-1] for strand in starts]
    cuts = []
    for position in range(0, (num_blocks + 1) * payload, payload):
        strand = bisect_left(lasts, position)
        cuts.append((strand, bisect_left(starts[strand], position) if strand < len(starts) else 0))
    partial_starts = [0]
    for block in range(num_blocks):
        cut = [where for where in blocks if where[0] == block != where[-1]]
        partial_starts.append(partial_starts[-1] + sum(len(where) for where in cut))
    for where in blocks:
        if where[0] != where[-1] and partial_starts[where[0] + 1] > max_partials:
            where[:] = [where[0]] * len(where)

    tasks: list[list[tuple[int, ...]]] = [[] for _ in range(num_blocks)]
    for number, where in enumerate(blocks):
        seq, in_seq = divmod(number, strands_of_seq)
        kv_head, tile = divmod(in_seq, rows.num_tiles)
        first_row = tile * rows.tile_rows
        row_span = (first_row, min(rows.tile_rows, rows.num_rows - first_row))
        first_split, end_split = spans[seq]
        whole = number if layout.num_totals < MAX_BLOCKS else where[0]
        for block in sorted(set(where)):
            first, count = where.index(block), where.count(block) if end_split > first_split else 0
            span = (lens[seq], first_split + first, count, first_split)
            merge = (whole, -1, *NO_GROUP, *NO_GROUP)
            if where[0] != where[-1]:
                groups = _cut_groups(where, first_split, first, count)
                merge = (layout.num_totals + partial_starts[where[0]], where[0], *groups)
            tasks[block].append((seq, kv_head, *row_span, *span, *merge))

    num_tasks = sum(map(len, tasks))
    header = (num_seqs, num_q_heads, num_kv_heads, head_dim, q_len, window, num_blocks, num_tasks)
    _write(workspace, 0, torch.tensor(header, dtype=INT))
    _write(workspace, 32, torch.tensor((partial_starts[-1], max_partials, seq_starts[-1], payload)))
    _write(workspace, layout.counters, torch.zeros(2 * MAX_BLOCKS, dtype=INT))
    _write(workspace, layout.cuts, torch.tensor(cuts, dtype=INT))
    _write(workspace, layout.partial_starts, torch.tensor(partial_starts))
    _write(workspace, layout.seq_starts, torch.tensor(seq_starts))
    place = 0
    for block in range(MAX_BLOCKS):
        mine = tasks[block] if block < num_blocks else []
        about = (num_blocks, len(mine), place + 1, 0) if block < num_blocks else (num_blocks,)
        _write(workspace, layout.blocks + BLOCK_BYTES * block, torch.tensor([*about, *sum(mine[:1], ())], dtype=INT))
        _write(workspace, layout.tasks + TASK_BYTES * (place + 1), torch.tensor(mine[1:], dtype=INT))
        place += len(mine)


def _cut_groups(where: list[int], first_split: int, first: int, count: int) -> tuple[int, ...]:
    """Of a piece, splits [first, first + count) of its strand, the head and the tail: see CutGroup in csrc/params.h."""

    def group(of: int) -> list[int]:
        number = (first_split + of) // GROUP_SPLITS
        return [i for i in range(len(where)) if (first_split + i) // GROUP_SPLITS == number]

    def cut(splits: list[int]) -> tuple[int, int, int]:
        owner = where[splits[0]]
        behind = next(i for i in splits if where[i] != owner)
        return MAX_BLOCKS + owner, first_split + behind, len({where[i] for i in splits})

    head, tail = group(first), group(first + count - 1)
    goes_on = tail[0] >= first and tail[-1] >= first + count
    return (*(cut(head) if head[0] < first else NO_GROUP), *(cut(tail) if goes_on else NO_GROUP))


def _write(workspace: Tensor, offset: int, values: Tensor) -> None:
    data = values.contiguous().view(torch.uint8).flatten()
    workspace[offset : offset + len(data)] = data.to(workspace.device)
