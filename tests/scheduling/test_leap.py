# SPDX-License-Identifier: Apache-2.0
"""A leap is its steps one by one: tokens, pages, prices, what follows. And it is refused where it would not be."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
from scheduler_audit import audit

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.watched import WatchedScheduler
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import Abort, Arrive, Reject, Resize, StepDone
from pagedserve.scheduling.scheduler import Scheduler

CONFIG = SchedulerConfig(num_pages=64, page_size=4, max_seqs=4, max_step_tokens=32, max_model_len=128)


def decoding(*max_tokens: int, scheduler: Scheduler | None = None, **fields: object) -> Scheduler:
    """A scheduler with a request for each, in flight the first step that only decodes; every token is 7."""
    scheduler = scheduler or Scheduler(CONFIG)
    for i, count in enumerate(max_tokens):
        scheduler.apply(Arrive(0.0, f"r{i}", [i + 1] * (5 + i), count, **fields))
    plan = scheduler.plan(0.0)
    scheduler.apply(StepDone(0.0, plan.step, [7] * len(max_tokens), ms=5.0))
    scheduler.plan(0.0)
    return scheduler


def step(scheduler: Scheduler, t: float, ms: float) -> None:
    flight = scheduler._flight
    scheduler.apply(StepDone(t, flight.plan.step, [7] * len(flight.decodes), ms=ms))
    scheduler.plan(t)


def state(scheduler: Scheduler) -> list[object]:
    seqs = [(seq.id, seq.tokens.tolist(), seq.pages, seq.due_tick) for seq in scheduler._seqs.values()]
    admission, flight = scheduler.admission, scheduler._flight
    learnt = vars(admission.cost), vars(admission.trust), admission._done_s, admission._lefts
    plan = flight.plan
    return [seqs, learnt, astuple(scheduler.stats()), flight.t, plan.step, plan.shape, plan.predicted_ms]


@pytest.mark.parametrize("count", [1, 2, 9, 23])
def test_a_leap_is_its_steps(count: int) -> None:
    known = replace(CONFIG, prices=StepPrices(uncertainty=0.05))
    leaping, stepping = (decoding(25, 40, 30, scheduler=Scheduler(known)) for _ in range(2))
    for scheduler in (leaping, stepping):
        [refused] = scheduler.apply(Arrive(0.0, "hasty", [1] * 9, 4, ttft_deadline_s=1e-3))
        assert isinstance(refused, Reject)
    assert leaping.horizon() == (23, math.inf)
    ends_s = [0.01 * (i + 1) for i in range(count)]
    leaping.leap(ends_s, lambda i: 5.0 + i, 7)
    for i, end_s in enumerate(ends_s):
        step(stepping, end_s, 5.0 + i)
    audit(leaping)
    assert state(leaping) == state(stepping)
    for i in range(40):
        for scheduler in (leaping, stepping):
            if scheduler._flight is not None:
                step(scheduler, 1.0 + i, 6.0)
    assert leaping._flight is stepping._flight is None
    assert astuple(leaping.stats()) == astuple(stepping.stats())


def test_the_next_plan_carries_all_page_writes() -> None:
    scheduler = decoding(25)
    scheduler.leap([0.01 * (i + 1) for i in range(20)], lambda i: 5.0, 7)
    plan = scheduler._flight.plan
    scheduler.apply(StepDone(0.3, plan.step, [7], ms=5.0))
    assert [index for _, index, _ in scheduler.plan(0.3).page_writes] == list(range(2, 7))


def test_the_horizon_ends_where_something_may_happen() -> None:
    assert decoding(25, 9).horizon() == (7, math.inf)
    assert decoding(25, deadline_s=3.0).horizon() == (23, 3.0)
    assert decoding(2).horizon()[0] == 0
    assert decoding(25, scheduler=WatchedScheduler(CONFIG, lambda record, made: None)).horizon()[0] == 0
    assert Scheduler(CONFIG).horizon()[0] == 0

    waiting = decoding(25, 25)
    waiting.apply(Arrive(0.0, "late", [1] * 8, 4))
    assert waiting.horizon()[0] == 0

    full = decoding(25, 25, 25, 25)
    full.apply(Arrive(0.0, "late", [1] * 8, 4, ttft_deadline_s=2.0))
    assert full.horizon() == (23, 2.0)

    aborted = decoding(25, 25)
    aborted.apply(Abort(0.0, "r0"))
    assert aborted.horizon()[0] == 0

    shrunk = decoding(25)
    shrunk.apply(Resize(0.0, 32))
    assert shrunk.horizon()[0] == 0


def test_nobody_gives_way_within_the_horizon() -> None:
    small = SchedulerConfig(num_pages=13, page_size=4, max_seqs=4, max_step_tokens=32, max_model_len=48, watermark=0.0)
    scheduler = decoding(25, 25, scheduler=Scheduler(small))
    steps, _ = scheduler.horizon()
    assert 8 <= steps < 23
    scheduler.leap([0.01 * (i + 1) for i in range(steps)], lambda i: 5.0, 7)
    assert scheduler.stats().preemptions == 0
    audit(scheduler)


def test_what_is_no_leap_is_refused() -> None:
    scheduler = decoding(25, deadline_s=3.0, stop_token_ids=frozenset([9]))
    for ends_s, token in (([], 7), ([0.1] * 24, 7), ([3.0], 7), ([0.1], 9)):
        with pytest.raises(InvalidInput, match="horizon"):
            scheduler.leap(ends_s, lambda i: 5.0, token)
    with pytest.raises(InvalidInput, match="horizon"):
        Scheduler(CONFIG).leap([0.1], lambda i: 5.0, 7)
