# SPDX-License-Identifier: Apache-2.0
"""Makes plans on the host and reads workspaces back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.specs.plan_layout import (
    BLOCK_BYTES,
    HEADER_INTS,
    HEADER_LONGS,
    TASK_BYTES,
    TASK_FIELDS,
    PlanLayout,
    workspace_bytes,
)

POISON = 0xAB


@dataclass(frozen=True)
class Shape:
    num_q_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 16
    q_len: int = 1
    window: int = 0

    def bytes_for(self, max_seqs: int, max_kv_tokens: int) -> int:
        heads = self.num_q_heads, self.num_kv_heads, self.head_dim
        return workspace_bytes(max_seqs, *heads, max_kv_tokens=max_kv_tokens, q_len=self.q_len)


class Task(NamedTuple):
    seq: int
    kv_head: int
    first_row: int
    num_rows: int
    kv_len: int
    first_split: int
    num_splits: int
    strand_split: int
    partial: int
    counter: int
    head_counter: int
    head_cut: int
    head_pieces: int
    tail_counter: int
    tail_cut: int
    tail_pieces: int

    @property
    def splits(self) -> range:
        return range(self.first_split, self.first_split + self.num_splits)

    @property
    def head(self) -> tuple[int, int, int]:
        return self.head_counter, self.head_cut, self.head_pieces

    @property
    def tail(self) -> tuple[int, int, int]:
        return self.tail_counter, self.tail_cut, self.tail_pieces


assert Task._fields == TASK_FIELDS


@dataclass(frozen=True)
class Plan:
    header: dict[str, int]
    blocks: list[list[Task]]  # each block's tasks


def poisoned(num_bytes: int) -> Tensor:
    return torch.full((num_bytes,), POISON, dtype=torch.uint8)


def enough(shape: Shape, lens: list[int]) -> int:
    return shape.bytes_for(len(lens), sum(max(length, 0) for length in lens))


def plan_on_host(shape: Shape, lens: list[int], num_blocks: int, workspace: Tensor) -> bool:
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    params = _C.PlanDecodeParams(
        kv_lens=kv_lens.data_ptr(),
        workspace=workspace.data_ptr(),
        workspace_bytes=workspace.numel(),
        num_seqs=len(lens),
        num_q_heads=shape.num_q_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        q_len=shape.q_len,
        window=shape.window,
        num_blocks=num_blocks,
    )
    return _C.plan_decode(params)


def ints_at(workspace: Tensor, offset: int, num_bytes: int) -> list[int]:
    return workspace[offset:][:num_bytes].view(torch.int32).tolist()


def read(shape: Shape, num_seqs: int, workspace: Tensor) -> Plan:
    layout = PlanLayout.of(num_seqs, shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len)
    ints = workspace[:32].view(torch.int32).tolist()
    longs = workspace[32:64].view(torch.int64).tolist()
    header = dict(zip((*HEADER_INTS, *HEADER_LONGS), (*ints, *longs), strict=True))
    blocks = []
    for block in range(header["num_blocks"]):
        about = ints_at(workspace, layout.blocks + BLOCK_BYTES * block, BLOCK_BYTES)
        _, num_tasks, next_task, _, *first = about
        more = ints_at(workspace, layout.tasks + TASK_BYTES * next_task, TASK_BYTES * max(num_tasks - 1, 0))
        fields = (first if num_tasks else []) + more
        blocks.append([Task(*fields[i : i + len(TASK_FIELDS)]) for i in range(0, len(fields), len(TASK_FIELDS))])
    return Plan(header, blocks)


def host_plan(shape: Shape, lens: list[int], num_blocks: int, num_bytes: int | None = None) -> Plan:
    workspace = poisoned(enough(shape, lens) if num_bytes is None else num_bytes)
    assert plan_on_host(shape, lens, num_blocks, workspace)
    return read(shape, len(lens), workspace)
