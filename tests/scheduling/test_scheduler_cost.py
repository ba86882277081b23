# SPDX-License-Identifier: Apache-2.0
"""Work per step, counted in bytecodes and calls rather than seconds: it grows with what changed, not with what runs."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive, StepDone, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

PAGE_SIZE = 16


def decoding(num_seqs: int, staggered: bool) -> tuple[Scheduler, StepPlan]:
    """num_seqs sequences that decode; staggered: as many fill a page in each step."""
    config = SchedulerConfig(
        num_pages=num_seqs * 12, page_size=PAGE_SIZE, max_seqs=num_seqs, max_step_tokens=8192, max_model_len=512
    )
    scheduler = Scheduler(config)
    for i in range(num_seqs):
        prompt = [(i * 7919 + j) % 30_000 for j in range(32 + (i % PAGE_SIZE if staggered else 0))]
        scheduler.apply(Arrive(0.0, f"r{i}", prompt, 100, stop_token_ids=frozenset([30_001])))
    plan = scheduler.plan(0.0)
    while plan is not None and plan.chunks:
        num_samples = len(plan.decode_rows) + sum(chunk.samples for chunk in plan.chunks)
        scheduler.apply(StepDone(0.0, plan.step, [5] * num_samples))
        plan = scheduler.plan(0.0)
    assert plan is not None
    assert len(plan.decode_rows) == num_seqs
    return scheduler, plan


def counted_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> tuple[StepPlan, int, int]:
    """The next plan, the bytecodes run to get there, and the Python functions called."""
    counted = [0, 0]

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        counted[event == "call"] += event in ("opcode", "call")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        following = one_step(scheduler, plan, tokens)
    finally:
        sys.settrace(before)
    return following, counted[0], counted[1]


def one_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> StepPlan:
    scheduler.apply(StepDone(0.0, plan.step, tokens))
    following = scheduler.plan(0.0)
    assert following is not None
    return following


def test_a_step_in_which_nothing_changes_costs_the_same_for_any_number() -> None:
    costs = {}
    for num_seqs in (64, 256):
        scheduler, plan = decoding(num_seqs, staggered=False)
        tokens = list(range(100, 100 + num_seqs))
        plan = one_step(scheduler, plan, tokens)
        plan, opcodes, calls = counted_step(scheduler, plan, tokens)
        assert plan.page_writes == []
        costs[num_seqs] = (opcodes, calls)
    assert costs[64] == costs[256]
    assert costs[64][0] <= 1000, costs
    assert costs[64][1] <= 40, costs


def test_a_page_filled_costs_a_bounded_amount() -> None:
    costs = {}
    for num_seqs in (64, 256):
        scheduler, plan = decoding(num_seqs, staggered=True)
        tokens = list(range(100, 100 + num_seqs))
        totals, filled = [0, 0], 0
        for _ in range(PAGE_SIZE):
            plan, opcodes, calls = counted_step(scheduler, plan, tokens)
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
        plan = one_step(scheduler, plan, [5])
    _, opcodes, _ = counted_step(scheduler, plan, [5])
    assert scheduler.num_waiting == 1
    assert opcodes <= 1500, opcodes
