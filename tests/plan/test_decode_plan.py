# SPDX-License-Identifier: Apache-2.0
"""Properties of the plan that the host makes: every split once, balance, room, and the same bytes as the oracle."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagedserve.backends.reference import plan as reference
from pagedserve.specs.plan_layout import GROUP_SPLITS, MAX_BLOCKS, PIECE_COST, SPLIT_TOKENS, PlanLayout, Rows
from tests.plan.plans import Shape, Task, enough, host_plan, plan_on_host, poisoned, read

SHAPES = st.builds(
    lambda group, num_kv_heads, *more: Shape(group * num_kv_heads, num_kv_heads, *more),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([16, 128, 136, 256]),
    st.integers(1, 16),
    st.sampled_from([0, 0, 1, 255, 256, 257, 5000]),
)
LENGTH = st.one_of(
    st.sampled_from([0, -1, -(2**31), 1, 255, 256, 257, 512, 1 << 14]), st.integers(1, 3000), st.integers(1, 20_000)
)
LENS = st.lists(LENGTH, max_size=9)
BLOCKS = st.integers(1, 40)
NO_GROUP = (-1, 0, 0)
some = settings(max_examples=60, deadline=None)


def pieces_by_strand(blocks: list[list[Task]]) -> dict[tuple[int, int, int], list[tuple[int, Task]]]:
    found = defaultdict(list)
    for block, tasks in enumerate(blocks):
        for task in tasks:
            found[task.seq, task.kv_head, task.first_row].append((block, task))
    return found


def check_every_split_once(shape: Shape, lens: list[int], blocks: list[list[Task]]) -> None:
    rows = Rows.of(shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len)
    found = pieces_by_strand(blocks)
    assert len(found) == len(lens) * shape.num_kv_heads * rows.num_tiles
    covered = defaultdict(int)
    for (seq, kv_head, _), pieces in found.items():
        first, end = reference.strand_splits(lens[seq], shape.q_len, shape.window)
        splits = [s for _, t in pieces for s in range(t.first_split, t.first_split + t.num_splits)]
        assert splits == list(range(first, end))
        assert all(task.kv_len == max(lens[seq], 0) for _, task in pieces)
        assert len({(task.first_row, task.num_rows) for _, task in pieces}) == 1
        assert len({block for block, _ in pieces}) == len(pieces)
        assert all(task.num_splits > 0 for _, task in pieces) or len(pieces) == 1
        covered[seq, kv_head] += pieces[0][1].num_rows
    assert set(covered.values()) <= {rows.num_rows}


def check_places(blocks: list[list[Task]], num_totals: int, max_partials: int) -> None:
    """Whole strands that are attended to at once have a total each, cut ones a partial for each of their splits."""
    used, counters, totals = [], [], defaultdict(set)
    for strand, pieces in pieces_by_strand(blocks).items():
        assert len({(task.partial, task.counter, task.strand_split) for _, task in pieces}) == 1
        block, first = pieces[0]
        assert first.strand_split == first.first_split
        if len(pieces) == 1:
            assert (first.counter, first.head, first.tail) == (-1, NO_GROUP, NO_GROUP)
            assert 0 <= first.partial < num_totals
            totals[first.partial].add(block if num_totals == MAX_BLOCKS else strand)
            continue
        counters.append(first.counter)
        used += range(first.partial, first.partial + sum(task.num_splits for _, task in pieces))
    assert all(len(owners) == 1 for owners in totals.values())
    assert len(set(used)) == len(used)
    assert all(num_totals <= place < num_totals + max_partials for place in used)
    assert len(set(counters)) == len(counters)
    assert all(0 <= counter < MAX_BLOCKS for counter in counters)


def check_groups(blocks: list[list[Task]]) -> None:
    """Each cut group has a counter of its own, and all of its pieces say of it what its splits say."""
    counters = []
    for pieces in pieces_by_strand(blocks).values():
        owner_of = {split: block for block, task in pieces for split in task.splits}
        for block, task in pieces:
            said = {}
            if task.splits:
                said = {task.splits[0] // GROUP_SPLITS: task.head, task.splits[-1] // GROUP_SPLITS: task.tail}
            if task.splits and task.splits[0] // GROUP_SPLITS == task.splits[-1] // GROUP_SPLITS:
                assert NO_GROUP in (task.head, task.tail)
                said = {task.splits[0] // GROUP_SPLITS: max(task.head, task.tail)}
            for group in {split // GROUP_SPLITS for split in task.splits}:
                members = [split for split in owner_of if split // GROUP_SPLITS == group]
                owners = {owner_of[split] for split in members}
                if len(owners) == 1:
                    assert said.get(group, NO_GROUP) == NO_GROUP
                    continue
                owner = owner_of[min(members)]
                cut = min(split for split in members if owner_of[split] != owner)
                assert said[group] == (MAX_BLOCKS + owner, cut, len(owners))
                assert said[group] == (task.tail if owner == block else task.head)
                if owner == block:
                    counters.append(task.tail_counter)
    assert len(set(counters)) == len(counters)


def written_partials(blocks: list[list[Task]]) -> int:
    """A group's splits from its begin on are one partial of a piece, those of its head one each."""
    count = 0
    for tasks in blocks:
        for task in tasks:
            if task.counter >= 0:
                begun = {split // GROUP_SPLITS for split in task.splits}
                head = task.first_split // GROUP_SPLITS if task.head_counter >= 0 else -1
                count += sum(split // GROUP_SPLITS == head for split in task.splits) + len(begun - {head})
    return count


def totals_of(shape: Shape, lens: list[int]) -> int:
    return PlanLayout.of(len(lens), shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len).num_totals


def load(task: Task) -> int:
    end = min((task.first_split + task.num_splits) * SPLIT_TOKENS, task.kv_len)
    return end - task.first_split * SPLIT_TOKENS + PIECE_COST if task.num_splits else PIECE_COST


@some
@given(SHAPES, LENS, BLOCKS)
@example(Shape(), [1 << 20, 1, 0, -1, 3_000_000], 39)
@example(Shape(4, 1, q_len=2, window=300), [1_100_000, 5], 7)
def test_every_split_is_done_once_and_loads_are_even(shape, lens, num_blocks):
    plan = host_plan(shape, lens, num_blocks)
    check_every_split_once(shape, lens, plan.blocks)
    check_places(plan.blocks, totals_of(shape, lens), plan.header["max_partials"])
    check_groups(plan.blocks)
    work = sum(load(task) for tasks in plan.blocks for task in tasks)
    least = max(-(-work // num_blocks), SPLIT_TOKENS)
    heaviest = max(sum(map(load, tasks)) for tasks in plan.blocks)
    assert heaviest <= plan.header["payload"] + SPLIT_TOKENS + PIECE_COST <= least + SPLIT_TOKENS + PIECE_COST


@some
@given(SHAPES, LENS, BLOCKS)
def test_a_workspace_of_its_bytes_never_lacks_a_partial(shape, lens, num_blocks):
    header = host_plan(shape, lens, num_blocks).header
    assert header["wanted_partials"] <= header["max_partials"]


@some
@given(SHAPES, LENS, BLOCKS, st.integers(0, 60))
def test_too_few_partials_leave_strands_whole(shape, lens, num_blocks, max_partials):
    layout = PlanLayout.of(len(lens), shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len)
    plan = host_plan(shape, lens, num_blocks, layout.partials + max_partials * layout.partial_bytes)
    assert plan.header["max_partials"] == max_partials
    check_every_split_once(shape, lens, plan.blocks)
    check_places(plan.blocks, totals_of(shape, lens), max_partials)
    check_groups(plan.blocks)


@some
@given(SHAPES, LENS, BLOCKS, st.sampled_from([0, 5, None]))
def test_the_oracle_gives_the_same_bytes(shape, lens, num_blocks, max_partials):
    layout = PlanLayout.of(len(lens), shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len)
    size = enough(shape, lens) if max_partials is None else layout.partials + max_partials * layout.partial_bytes
    got, want = poisoned(size), poisoned(size)
    assert plan_on_host(shape, lens, num_blocks, got)
    heads = shape.num_q_heads, shape.num_kv_heads, shape.head_dim
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    reference.plan_decode(kv_lens, want, *heads, shape.q_len, shape.window, num_blocks)
    assert torch.equal(got, want)


@pytest.mark.parametrize("num_blocks", [1, 1024])
def test_the_longest_lengths_fit_the_arithmetic(num_blocks):
    shape, lens = Shape(71, 1, q_len=16), [2**31 - 1] * 64
    layout = PlanLayout.of(len(lens), 71, 1, 16, 16)
    workspace = poisoned(layout.partials)  # no partial at all: the tasks are few
    assert plan_on_host(shape, lens, num_blocks, workspace)
    plan = read(shape, len(lens), workspace)
    tiles = Rows.of(71, 1, 16, 16).num_tiles
    assert plan.header["work"] == 64 * tiles * (2**31 - 1 + PIECE_COST)
    assert plan.header["num_tasks"] == 64 * tiles
    assert {task.num_splits for tasks in plan.blocks for task in tasks} == {2**23}


def test_a_workspace_too_small_for_a_plan_is_refused_untouched():
    shape, lens = Shape(), [300] * 5
    workspace = poisoned(PlanLayout.of(5, 8, 2, 16).partials - 1)
    assert not plan_on_host(shape, lens, 3, workspace)
    assert torch.equal(workspace, poisoned(len(workspace)))


def test_blocks_without_work_have_no_task():
    plan = host_plan(Shape(2, 1), [256], 100)
    assert [len(tasks) for tasks in plan.blocks] == [1] + [0] * 99
    assert host_plan(Shape(), [], 4).blocks == [[], [], [], []]


def test_a_long_sequence_keeps_every_block_busy():
    """1 x 32K tokens, 8 KV heads, 132 blocks: 1,024 splits, so 7 or 8 a block."""
    plan = host_plan(Shape(32, 8), [1 << 15], 132)
    counts = [sum(task.num_splits for task in tasks) for tasks in plan.blocks]
    assert sum(counts) == 1024
    assert set(counts[:-1]) <= {7, 8, 9}


def test_plans_do_not_depend_on_what_stood_in_the_workspace():
    shape, lens = Shape(), [5000, 0, 700]
    first, second = poisoned(enough(shape, lens)), torch.zeros(enough(shape, lens), dtype=torch.uint8)
    for workspace in (first, second):
        assert plan_on_host(shape, [9000, 8, 8], 11, workspace)
        assert plan_on_host(shape, lens, 11, workspace)
    plans = [read(shape, 3, workspace) for workspace in (first, second)]
    assert plans[0] == plans[1]


def test_a_plan_cuts_but_never_reorders():
    """Whatever the number of blocks, a strand's pieces are its splits in order, in blocks in order."""
    shape, lens = Shape(3, 1), [20_000, 300, 77_777]
    for num_blocks in (1, 2, 13, 60):
        for pieces in pieces_by_strand(host_plan(shape, lens, num_blocks).blocks).values():
            order = list(itertools.chain(*(range(t.first_split, t.first_split + t.num_splits) for _, t in pieces)))
            assert order == sorted(order)
            assert [block for block, _ in pieces] == sorted(block for block, _ in pieces)


def change(blocks: list[list[Task]], block: int, place: int, **fields: int) -> None:
    blocks[block][place] = blocks[block][place]._replace(**fields)


def last_task_is_dropped(blocks):
    blocks[-1].pop()


def a_split_is_done_twice(blocks):
    change(blocks, 1, 0, first_split=blocks[1][0].first_split - 1, num_splits=blocks[1][0].num_splits + 1)


def a_block_does_anothers_piece_too(blocks):
    blocks[2].append(blocks[1][0])


def lengths_are_an_earlier_steps(blocks):
    change(blocks, 0, 0, kv_len=blocks[0][0].kv_len - 1)


def a_row_is_nobodys(blocks):
    for tasks in blocks:
        tasks[:] = [task._replace(num_rows=task.num_rows - 1) for task in tasks]


def partials_overlap(blocks):
    for tasks in blocks:
        tasks[:] = [task._replace(partial=task.partial - (task.kv_head == 1)) for task in tasks]


def two_strands_share_a_counter(blocks):
    cut = {task.counter for tasks in blocks for task in tasks if task.counter >= 0}
    for tasks in blocks:
        tasks[:] = [task._replace(counter=min(cut)) if task.counter >= 0 else task for task in tasks]


def a_partial_lies_behind_the_workspace(blocks):
    for tasks in blocks:
        tasks[:] = [task._replace(partial=task.partial + 1000) if task.counter >= 0 else task for task in tasks]


def one_piece_is_not_waited_for(blocks):
    change(blocks, 1, 0, head_pieces=blocks[1][0].head_pieces - 1)


def a_cut_stands_one_split_late(blocks):
    change(blocks, 1, 0, head_cut=blocks[1][0].head_cut + 1)


def a_group_counts_in_anothers_place(blocks):
    change(blocks, 1, 0, head_counter=blocks[1][0].head_counter + 1)


def a_cut_group_is_taken_for_a_whole_one(blocks):
    change(blocks, 0, -1, tail_counter=-1, tail_cut=0, tail_pieces=0)


def places(shape: Shape, lens: list[int], blocks: list[list[Task]]) -> None:
    layout = PlanLayout.of(len(lens), shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.q_len)
    check_places(blocks, layout.num_totals, layout.max_partials(enough(shape, lens)))


def groups(shape: Shape, lens: list[int], blocks: list[list[Task]]) -> None:
    check_groups(blocks)


@pytest.mark.parametrize(
    "spoil, check",
    [
        *((spoil, check_every_split_once) for spoil in (last_task_is_dropped, a_split_is_done_twice)),
        *((spoil, check_every_split_once) for spoil in (a_block_does_anothers_piece_too, a_row_is_nobodys)),
        (lengths_are_an_earlier_steps, check_every_split_once),
        *((spoil, places) for spoil in (partials_overlap, two_strands_share_a_counter)),
        (a_partial_lies_behind_the_workspace, places),
        *((spoil, groups) for spoil in (one_piece_is_not_waited_for, a_cut_stands_one_split_late)),
        *((spoil, groups) for spoil in (a_group_counts_in_anothers_place, a_cut_group_is_taken_for_a_whole_one)),
    ],
    ids=lambda function: function.__name__,
)
def test_a_wrong_plan_is_rejected_by_the_check_that_is_for_it(spoil, check):
    shape, lens = Shape(8, 2), [5000, 3000]
    plan = host_plan(shape, lens, 5)
    check(shape, lens, plan.blocks)
    spoil(plan.blocks)
    with pytest.raises(AssertionError):
        check(shape, lens, plan.blocks)


K = 1024
EVEN = [  # heads, kv_lens, the heaviest of 132 blocks and of 264 over an even share, bytes of partials over bytes of KV
    ((32, 8, 2), [32 * K] * 8, 1.02, 1.04, 0.03),
    ((32, 8, 2), [4 * K] * 32, 1.06, 1.07, 0.02),
    ((32, 8, 2), [32 * K], 1.10, 1.17, 0.04),
    ((64, 8, 1), [2 * K] * 128, 1.05, 1.07, 0.02),
    ((8, 1, 1), [128 * K] + [4 * K] * 31, 1.12, 1.18, 0.13),
    ((32, 8, 2), [K] * 256, 1.09, 1.10, 0.01),
]


@pytest.mark.parametrize("heads, lens, few, many, partials", EVEN)
def test_work_is_shared_out_evenly(heads, lens, few, many, partials):
    num_q_heads, num_kv_heads, kv_bytes = heads
    shape = Shape(num_q_heads, num_kv_heads, 128)
    for num_blocks, allowed in ((132, few), (264, many)):
        plan = host_plan(shape, lens, num_blocks)
        share = num_kv_heads * sum(lens) / num_blocks
        assert max(sum(map(load, tasks)) for tasks in plan.blocks) <= allowed * share
        written_and_read = 2 * written_partials(plan.blocks) * num_q_heads // num_kv_heads * (128 + 2) * 4
        assert written_and_read <= partials * sum(lens) * num_kv_heads * 128 * 2 * kv_bytes
