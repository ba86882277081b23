# SPDX-License-Identifier: Apache-2.0
"""Work per step, counted in bytecodes and calls rather than seconds: it grows with what changed, not with what runs."""

from __future__ import annotations

import pytest

from bench.scheduler_steps import PAGE_SIZE, count_step, decoding, one_step
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive
from pagedserve.scheduling.scheduler import Scheduler


def test_a_step_in_which_nothing_changes_costs_the_same_for_any_number() -> None:
    costs = {}
    for num_seqs in (64, 256):
        scheduler, plan = decoding(num_seqs, 32, staggered=False, promised=False)
        tokens = list(range(100, 100 + num_seqs))
        plan = one_step(scheduler, plan, tokens, ms=0.0)
        plan, opcodes, calls = count_step(scheduler, plan, tokens, ms=0.0)
        assert plan.page_writes == []
        costs[num_seqs] = (opcodes, calls)
    assert costs[64] == costs[256]
    assert costs[64][0] <= 1000, costs
    assert costs[64][1] <= 40, costs


def test_promises_and_learning_add_to_a_step_the_same_for_any_number() -> None:
    costs = {}
    for num_seqs in (64, 256):
        scheduler, plan = decoding(num_seqs, 32, staggered=False)
        tokens = list(range(100, 100 + num_seqs))
        for _ in range(3 * PAGE_SIZE + 2):  # until the cost of a step is known, and looked at in one of four
            plan = one_step(scheduler, plan, tokens)
        counts = []
        for _ in range(4):
            plan, *count = count_step(scheduler, plan, tokens)
            assert plan.page_writes == []
            counts.append(count)
        costs[num_seqs] = [sum(column) / 4 for column in zip(*counts, strict=True)]
    assert costs[256] == pytest.approx(costs[64], rel=0.05)
    assert costs[64][0] <= 1400, costs
    assert costs[64][1] <= 40, costs


def test_a_page_filled_costs_a_bounded_amount() -> None:
    costs = {}
    for num_seqs in (64, 256):
        scheduler, plan = decoding(num_seqs, 32)
        tokens = list(range(100, 100 + num_seqs))
        totals, filled = [0, 0], 0
        for _ in range(PAGE_SIZE):
            plan, opcodes, calls = count_step(scheduler, plan, tokens)
            totals = [totals[0] + opcodes, totals[1] + calls]
            filled += len(plan.page_writes)
        assert filled == num_seqs
        costs[num_seqs] = totals
    per_page = [(many - few) / (256 - 64) for many, few in zip(costs[256], costs[64], strict=True)]
    assert per_page[0] <= 600, per_page
    assert per_page[1] <= 25, per_page


def test_a_prompt_that_cannot_start_is_not_looked_up_in_every_step() -> None:
    config = SchedulerConfig(num_pages=30, page_size=PAGE_SIZE, max_seqs=8, max_step_tokens=512, max_model_len=480)
    scheduler = Scheduler(config)
    scheduler.apply(Arrive(0.0, "a", list(range(300)), 100))
    plan = scheduler.plan(0.0)
    scheduler.apply(Arrive(0.0, "b", list(range(1000, 1250)), 10))
    for _ in range(3):
        plan = one_step(scheduler, plan, [5], ms=0.0)
    _, opcodes, _ = count_step(scheduler, plan, [5], ms=0.0)
    assert scheduler.num_waiting == 1
    assert opcodes <= 1500, opcodes
