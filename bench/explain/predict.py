# SPDX-License-Identifier: Apache-2.0
"""What a decode can take at least, from counted facts: bytes, the plan, registers, shared memory and instructions.

Every number is a Fact with its origin. Nothing here is measured; what is assumed says so.

    needed in flight    latency * bandwidth of an SM                                          (Little's law)
    in flight           blocks on an SM * stages * bytes of a tile; one stage less while a tile is used
    a tile's time       its bytes / bandwidth of an SM, against issue slots of one warp: an SM has four schedulers, a
                        block four warps
    predicted           launch + dependent trips + merge + the last tile's instructions + the longest of: bytes /
                        streaming rate, issue slots of the SM with most tiles, that SM's bytes at what it can have in
                        flight
    merge               of the cut group with most partials, then of the strand with most groups, each by one block: a
                        trip to the second cache to write, one to count, then for every `merge_ahead` partials a
                        trip, their bytes at what an SM takes from that cache, and their instructions one a clock; four
                        rows at a time
    streaming rate      what published rows of FlashAttention 3 grow by. A row's own bytes / time has its launch,
                        prologue and tail in it, which are counted here for ours; between two rows they cancel
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.explain.code import Sizes, Work
from pagedserve import ops
from pagedserve.simulate.hardware import GPUS, Gpu
from pagedserve.specs.plan_layout import (
    BLOCK_BYTES,
    BLOCKS_PER_MULTIPROCESSOR,
    GROUP_SPLITS,
    MAX_BLOCKS,
    SPLIT_TOKENS,
    TASK_BYTES,
    TASK_FIELDS,
    PlanLayout,
    Rows,
    ceil_div,
)

BITS = {"bf16": 16, "f16": 16, "f8": 8, "i8": 8, "i4": 4}
SCALE_BYTES = {"bf16": 0, "f16": 0, "f8": 4, "i8": 4, "i4": 4}
LATENCY_S = 0.8e-6
TRIP_S = 0.6e-6
CACHE_TRIP_S = 0.3e-6
CACHE_BYTES_PER_CLOCK = 64  # of an SM
LAUNCH_S = 2.0e-6
# FlashAttention 3 on an H200, vllm #43232: bf16, 32/8 heads, head_dim 128, page_size 16. kv_lens -> bytes a second.
PUBLISHED = {"8x1024": 1.92e12, "8x4096": 3.23e12, "8x16384": 4.05e12, "8x32768": 4.24e12}
PUBLISHED_BYTES_PER_S = 4.8e12  # the data sheet's
# Loads of which each needs the one before, from run() to the first tile; then what each of two merges waits for first.
TRIPS = ("a block's first record", "page id, length", "tile, queries")
MERGE_TRIPS = ("partial written", "arrival counted")


def streaming_share() -> float:
    """Of the data sheet's bandwidth: (bytes of 8x32768 - those of 8x16384) / (the time of one - that of the other)."""
    token_bytes = 2 * 8 * 128 * 2
    longer, shorter = (8 * length * token_bytes for length in (32768, 16384))
    seconds = longer / PUBLISHED["8x32768"] - shorter / PUBLISHED["8x16384"]
    return (longer - shorter) / seconds / PUBLISHED_BYTES_PER_S


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet has it; clock_hz: the highest."""

    gpu: Gpu
    arch: str
    num_sms: int
    clock_hz: float

    @property
    def sm_bytes_per_clock(self) -> float:
        return self.gpu.bytes_per_s / self.num_sms / self.clock_hz


CARDS = {
    "h200": Card(GPUS["h200"], "sm_90a", 132, 1.98e9),
    "h100": Card(GPUS["h100"], "sm_90a", 132, 1.98e9),
    "a100": Card(GPUS["a100"], "sm_80", 108, 1.41e9),
}


@dataclass(frozen=True)
class Shape:
    """One decode of one query token a sequence. kv: of code.FORMATS."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    kv_lens: tuple[int, ...]
    kv: str

    @property
    def head_token_bytes(self) -> float:
        """Key, value and scales of a token and KV head."""
        return 2 * (self.head_dim * BITS[self.kv] / 8 + SCALE_BYTES[self.kv])

    @property
    def kv_bytes(self) -> float:
        return sum(max(n, 0) for n in self.kv_lens) * self.num_kv_heads * self.head_token_bytes

    @property
    def rows(self) -> Rows:
        return Rows.of(self.num_q_heads, self.num_kv_heads, self.head_dim, 1)


@dataclass(frozen=True)
class Plan:
    """What the host's planner gives the blocks of a launch.

    Attributes:
        block_tokens: of each planned block, tokens of a KV head and tile of rows.
        partial_bytes: written, and read once.
        most_partials: of a cut group; 0 where no strand is cut.
        most_groups: of a cut strand; 0 where none has more than one.
    """

    block_tokens: tuple[int, ...]
    num_tasks: int
    partial_bytes: int = 0
    most_partials: int = 0
    most_groups: int = 0

    @property
    def busy(self) -> int:
        return sum(tokens > 0 for tokens in self.block_tokens)

    def of_sms(self, num_sms: int) -> list[int]:
        """Tokens of each SM, when blocks go round the SMs."""
        return [sum(self.block_tokens[sm::num_sms]) for sm in range(num_sms)]


def planned(shape: Shape, num_sms: int) -> Plan:
    """The plan that a launch on so many SMs runs."""
    num_blocks = min(BLOCKS_PER_MULTIPROCESSOR * num_sms, MAX_BLOCKS)
    heads = {"num_q_heads": shape.num_q_heads, "num_kv_heads": shape.num_kv_heads, "head_dim": shape.head_dim}
    tokens = sum(max(n, 0) for n in shape.kv_lens)
    size = ops.decode_workspace_bytes(len(shape.kv_lens), **heads, max_kv_tokens=tokens)
    workspace = torch.zeros(size, dtype=torch.uint8)
    lens = torch.tensor(shape.kv_lens, dtype=torch.int32)
    ops.plan_decode(lens, workspace, **heads, num_blocks=num_blocks, backend="cpu")
    layout = PlanLayout.of(len(shape.kv_lens), *heads.values())
    blocks = [
        workspace[layout.blocks + BLOCK_BYTES * block :][:BLOCK_BYTES].view(torch.int32).tolist()
        for block in range(num_blocks)
    ]
    tasks = []
    for _, num_tasks, next_task, _, *first in blocks:
        more = workspace[layout.tasks + TASK_BYTES * next_task :][: TASK_BYTES * max(num_tasks - 1, 0)].view(
            torch.int32
        )
        records = [first, *more.view(-1, len(TASK_FIELDS)).tolist()] if num_tasks else []
        tasks.append([dict(zip(TASK_FIELDS, record, strict=True)) for record in records])
    cut = [task for mine in tasks for task in mine if task["counter"] >= 0]
    written = sum(partials_of(task) * task["num_rows"] * 4 * (shape.head_dim + 2) for task in cut)
    groups = max((ceil_div(splits_of(task), GROUP_SPLITS) for task in cut), default=0)
    return Plan(
        tuple(sum(map(task_tokens, mine)) for mine in tasks),
        sum(map(len, tasks)),
        written,
        max((group_partials(task) for task in cut), default=0),
        groups if groups > 1 else 0,
    )


def splits_of(task: dict[str, int]) -> int:
    """Of the task's strand, which has no window."""
    return ceil_div(task["kv_len"], SPLIT_TOKENS)


def partials_of(task: dict[str, int]) -> int:
    """What a piece of a cut strand writes: a group that it begins is one, splits of its head are one each."""
    end = task["first_split"] + task["num_splits"]
    head_end = task["first_split"]
    if task["head_counter"] >= 0:
        head_end = min((head_end // GROUP_SPLITS + 1) * GROUP_SPLITS, end)
    begun = ceil_div(end, GROUP_SPLITS) - ceil_div(head_end, GROUP_SPLITS) if end > head_end else 0
    return head_end - task["first_split"] + begun


def group_partials(task: dict[str, int]) -> int:
    """Of the group that a piece begins and its end cuts: its first splits as one, the others one each."""
    if task["tail_counter"] < 0:
        return 0
    cut = task["tail_cut"]
    return min(ceil_div(cut, GROUP_SPLITS) * GROUP_SPLITS, splits_of(task)) - cut + 1


def task_tokens(task: dict[str, int]) -> int:
    first = task["first_split"] * SPLIT_TOKENS
    return max(min(first + task["num_splits"] * SPLIT_TOKENS, task["kv_len"]) - first, 0)


@dataclass(frozen=True)
class Fact:
    """A number, and where it is from: "data sheet", "counted", "planner", "arithmetic", "derived" or "assumed"."""

    name: str
    value: float
    unit: str
    origin: str


@dataclass(frozen=True)
class Prediction:
    """Facts of one call, with those that verdicts rest on by name.

    Attributes:
        needed_share: of the data sheet's bandwidth that a bar asks for, beyond what launch, trips and merge take.
        bound: what the longest term is.
    """

    shape: Shape
    bar_s: float | None
    floor_s: float
    fixed_s: float
    predicted_s: float
    issue_share: float
    in_flight_share: float
    balance: float
    needed_share: float | None
    bound: str
    merge_s: float
    facts: tuple[Fact, ...]


def merge_of(shape: Shape, sizes: Sizes, work: Work, clock: float, rows: int, partials: int) -> float:
    """Seconds from the last partial's sums to the merged ones."""
    warps = sizes.threads // 32
    turns, batches = ceil_div(rows, warps), ceil_div(partials, sizes.merge_ahead)
    batch_bytes = min(partials, sizes.merge_ahead) * min(rows, warps) * 4 * (shape.head_dim + 2)
    batch_s = CACHE_TRIP_S + batch_bytes / CACHE_BYTES_PER_CLOCK / clock
    instructions = work.merge_slots(partials, sizes.merge_ahead) * ceil_div(shape.head_dim, 128) / clock
    return len(MERGE_TRIPS) * CACHE_TRIP_S + turns * (batches * batch_s + instructions)


def predict(
    shape: Shape, card: Card, sizes: Sizes, work: Work, registers: int, blocks: int, plan: Plan, bar_s: float | None
) -> Prediction:
    """The arithmetic of this page's head. blocks: on an SM at once, from registers and shared memory."""
    sm_rate, clock = card.sm_bytes_per_clock, card.clock_hz
    tile_bytes = sizes.tile_tokens * shape.head_token_bytes
    slots = work.tile_slots(sizes.tiles_per_split)
    tile_clocks = tile_bytes / sm_rate
    sms = plan.of_sms(card.num_sms)
    mean = sum(sms) / len(sms)
    busiest = max(sms)
    resident = min(blocks, max(-(-plan.busy // card.num_sms), 1))
    in_flight = resident * sizes.stages * tile_bytes
    share = streaming_share()
    needed = LATENCY_S * card.gpu.bytes_per_s / card.num_sms
    terms = {
        "memory": shape.kv_bytes / (card.gpu.bytes_per_s * share),
        "instructions": busiest / sizes.tile_tokens * slots / clock,
        "latency of the busiest SM": busiest * shape.head_token_bytes / (in_flight / LATENCY_S),
    }
    rows = min(shape.rows.num_rows, shape.rows.tile_rows)
    merges = [merge_of(shape, sizes, work, clock, rows, n) for n in (plan.most_partials, plan.most_groups) if n]
    merge_s = sum(merges)
    last_tile_s = work.tile_slots(1) / clock
    fixed = LAUNCH_S + len(TRIPS) * TRIP_S + merge_s + last_tile_s
    longest = max(terms, key=lambda name: terms[name])
    floor = shape.kv_bytes / card.gpu.bytes_per_s
    room = None if bar_s is None else bar_s - fixed
    facts = (
        Fact("bandwidth", card.gpu.bytes_per_s / 1e12, "TB/s", f"data sheet: {card.gpu.sheet}"),
        Fact("SMs", card.num_sms, "", "data sheet"),
        Fact("clock", clock / 1e9, "GHz", "data sheet, the highest"),
        Fact("latency under load", LATENCY_S * 1e6, "us", "assumed"),
        Fact("a trip to memory, else idle", TRIP_S * 1e6, "us", "assumed"),
        Fact("a trip to the second cache", CACHE_TRIP_S * 1e6, "us", "assumed"),
        Fact("launch and end of a kernel in a graph", LAUNCH_S * 1e6, "us", "assumed"),
        Fact("bytes from the second cache to an SM", CACHE_BYTES_PER_CLOCK, "a clock", "assumed"),
        Fact(
            "streaming share of bandwidth",
            share,
            "",
            "derived: published rows of FlashAttention 3, vllm #43232, 8x32768 less 8x16384; not measured by us",
        ),
        Fact("keys, values and scales", shape.kv_bytes / 1e6, "MB", "arithmetic"),
        Fact("floor: bytes over bandwidth", floor * 1e6, "us", "arithmetic"),
        Fact("registers of a thread", registers, "", "counted: cuobjdump"),
        Fact("shared memory of a block", sizes.shared_bytes / 1e3, "KB", "counted: sizeof"),
        Fact("blocks on an SM", blocks, "", "counted: registers, shared memory"),
        Fact("bytes of a tile", tile_bytes / 1e3, "KB", "counted: csrc"),
        Fact("in flight on an SM", in_flight / 1e3, "KB", f"counted: {resident} blocks of {sizes.stages} stages"),
        Fact("in flight while tiles are used", in_flight / 1e3 * (1 - 1 / sizes.stages), "KB", "counted"),
        Fact("needed in flight on an SM", needed / 1e3, "KB", "arithmetic: latency * bandwidth"),
        Fact(
            "a tile's bytes take", tile_clocks, "clocks", "arithmetic: at an SM's share of the data sheet's bandwidth"
        ),
        Fact("a tile's instructions take", slots, "clocks", "counted: issue slots of a warp, one a scheduler"),
        Fact(
            "a tile may be held for", in_flight / sm_rate - LATENCY_S * clock, "clocks", "arithmetic: stages, latency"
        ),
        Fact("all blocks' instructions for a tile", resident * slots, "clocks", "counted"),
        Fact("planned blocks with work", plan.busy, "", "planner"),
        Fact("tasks", plan.num_tasks, "", "planner"),
        Fact("mean over most tokens of an SM", mean / busiest if busiest else 1.0, "", "planner; blocks go round"),
        Fact("partials, written and read", 2 * plan.partial_bytes / 1e6, "MB", "planner; mostly in the second cache"),
        Fact("most partials of a cut group", plan.most_partials, "", "planner"),
        Fact("most groups of a cut strand", plan.most_groups, "", "planner"),
        Fact("their merges", merge_s * 1e6, "us", f"arithmetic: {', '.join(MERGE_TRIPS)}, {sizes.merge_ahead} a trip"),
        Fact("the last tile's instructions", last_tile_s * 1e6, "us", "counted, one a clock"),
        Fact("dependent trips to memory", len(TRIPS), "", f"counted: {'; '.join(TRIPS)}"),
    )
    return Prediction(
        shape=shape,
        bar_s=bar_s,
        floor_s=floor,
        fixed_s=fixed,
        predicted_s=fixed + terms[longest],
        issue_share=slots / tile_clocks,
        in_flight_share=in_flight / needed,
        balance=mean / busiest if busiest else 1.0,
        needed_share=None if room is None else (floor / room if room > 0 else float("inf")),
        bound=longest,
        merge_s=merge_s,
        facts=facts,
    )
