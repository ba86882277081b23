# SPDX-License-Identifier: Apache-2.0
"""Promises in virtual time: who is admitted is on time, few are sent away that need not be, steps keep their target."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
from scheduler_audit import audit
from symbolic_runner import arrive, distinct, make, run_dry, step
from virtual_engine import Story, VirtualEngine

from pagedserve.errors import InvalidInput
from pagedserve.scheduling import promises
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import CostModel, StepPrices
from pagedserve.scheduling.events import Abort, Admit, Arrive, Expire, Finish, Reject, StepDone
from pagedserve.scheduling.scheduler import Scheduler

# Made up, of a large model on an accelerator and of a small one on a processor.
FAST = StepPrices(weights_ms=6, token_ms=0.05, context_ms=3e-5, pair_ms=1e-6, seq_ms=0.02, step_ms=1.0)
SLOW = StepPrices(weights_ms=4.5, token_ms=0.45, context_ms=2.5e-4, pair_ms=2.5e-4, seq_ms=0.3, step_ms=0.5)
CONFIG = SchedulerConfig(num_pages=20_000, page_size=16, max_seqs=128, max_step_tokens=1024, max_model_len=2048)


def crowd(rate: Any, seconds: float, prompt: tuple[int, int], output: tuple[int, int], **fields: Any) -> list[Arrive]:
    """Poisson arrivals at rate(t) a second."""
    rng, t, events = random.Random(3), 0.0, list[Arrive]()
    while (t := t + rng.expovariate(rate(t))) < seconds:
        tokens = [len(events)] * rng.randint(*prompt)
        events.append(Arrive(t, f"r{len(events)}", tokens, rng.randint(*output), **fields))
    return events


def run(law: StepPrices, arrivals: list[Arrive], **changes: Any) -> tuple[Scheduler, VirtualEngine, list[Story]]:
    scheduler = Scheduler(dataclasses.replace(CONFIG, **changes))
    engine = VirtualEngine(scheduler, law)
    return scheduler, engine, list(engine.run(arrivals).values())


@pytest.mark.parametrize(
    ("law", "rate", "prompt", "output", "limits"),
    [
        (FAST, lambda t: 10 if not 4 <= t < 9 else 100, (100, 700), (20, 120), {}),
        (FAST, lambda t: 60, (100, 700), (20, 120), {}),
        (SLOW, lambda t: 3 if not 4 <= t < 9 else 40, (40, 120), (20, 100), {"max_seqs": 16, "max_step_tokens": 128}),
    ],
    ids=["spike", "overload", "few rows"],
)
def test_who_is_admitted_is_on_time(law, rate, prompt, output, limits) -> None:
    arrivals = crowd(rate, 15.0, prompt, output, ttft_deadline_s=1.5, tpot_target_s=0.06)
    scheduler, _, stories = run(law, arrivals, **limits)
    admitted = [story for story in stories if story.admitted]
    on_time = sum(story.on_time for story in stories)
    assert len(stories) - len(admitted) > 0.1 * len(stories), "the crowd is more than can be served"
    assert on_time >= 0.99 * len(admitted)
    _, _, unpromised = run(law, arrivals, **limits, admission=False)
    assert on_time >= 0.95 * sum(story.on_time for story in unpromised), "to be told at once costs little"
    stats = scheduler.stats()
    assert stats.rejected == len(stories) - len(admitted)
    assert stats.promises_kept + stats.promises_broken == len(admitted)
    assert stats.promises_kept == on_time


def test_a_step_beside_decodes_stays_within_the_target() -> None:
    target_ms = 40.0
    arrivals = crowd(lambda t: 12, 10.0, (100, 1500), (50, 150), tpot_target_s=target_ms / 1e3)
    _, engine, _ = run(FAST, arrivals, max_model_len=4096)
    mixed = [ms for decodes, tokens, ms in engine.steps[50:] if decodes and tokens > decodes]
    over = [ms for ms in mixed if ms > 1.05 * target_ms]
    assert len(over) <= 0.01 * len(mixed)
    assert max(tokens - decodes for decodes, tokens, _ in engine.steps[50:]) > 300, "and uses what it may"
    _, unbounded, _ = run(FAST, [dataclasses.replace(a, tpot_target_s=None) for a in arrivals], max_model_len=4096)
    assert max(ms for decodes, _, ms in unbounded.steps[50:] if decodes) > 1.2 * target_ms


def test_targets_are_kept_by_steps_whose_pace_wavers() -> None:
    clock, wave = random.Random(8), 1.0

    def pace() -> float:
        nonlocal wave
        wave += 0.1 * (1.0 - wave) + clock.gauss(0.0, 0.05)
        return max(0.5, wave * clock.gauss(1.0, 0.15))

    arrivals = crowd(lambda t: 6 if not 20 <= t < 25 else 40, 60.0, (40, 240), (10, 60), ttft_deadline_s=3.0)
    arrivals = [dataclasses.replace(event, tpot_target_s=0.07) for event in arrivals]
    engine = VirtualEngine(Scheduler(dataclasses.replace(CONFIG, max_seqs=32)), SLOW, pace=pace)
    admitted = [story for story in engine.run(arrivals).values() if story.admitted]
    assert sum(story.on_time for story in admitted) >= 0.99 * len(admitted) > 0.7 * len(arrivals)
    filled = sorted(ms for decodes, tokens, ms in engine.steps if decodes and tokens > 2 * decodes)
    assert filled[len(filled) * 9 // 10] > 0.9 * 70, "and steps use what they may"


def test_prices_that_were_guessed_far_too_low_are_no_sign_of_a_pace_that_wavers() -> None:
    guess = StepPrices(*(price / 20 for price in dataclasses.astuple(SLOW)[:-1]), 1.0)
    scheduler = Scheduler(dataclasses.replace(CONFIG, prices=guess))
    VirtualEngine(scheduler, SLOW).run([Arrive(0.02 * i, f"r{i}", [i] * 60, 50) for i in range(40)])
    assert scheduler.admission.trust.pace < 1.1


def test_a_target_that_nothing_meets_stops_nobody() -> None:
    arrivals = [Arrive(0.0, "a", [1] * 20, 200, tpot_target_s=1e-9), Arrive(0.1, "b", [2] * 100, 5)]
    _, _, stories = run(SLOW, arrivals)
    assert [story.end for story in stories] == ["length", "length"]
    assert stories[1].end_s < stories[0].end_s / 2


def test_a_machine_that_became_slow_and_fast_again_is_used_again() -> None:
    scheduler = Scheduler(CONFIG)
    engine = VirtualEngine(scheduler, dataclasses.replace(FAST, weights_ms=5000.0))
    engine.run([Arrive(float(i), f"s{i}", [i] * 50, 4) for i in range(12)])
    engine.law = FAST
    late = [Arrive(500.0 + i, f"f{i}", [100 + i] * 50, 4, ttft_deadline_s=1.0) for i in range(40)]
    engine.run([*late])
    assert [engine.stories[f"f{i}"].on_time for i in range(30, 40)] == [True] * 10


def test_an_impossible_deadline_is_refused_at_the_door() -> None:
    scheduler = Scheduler(dataclasses.replace(CONFIG, prices=dataclasses.replace(SLOW, uncertainty=0.05)))
    engine = VirtualEngine(scheduler, SLOW)
    engine.run([Arrive(0.0, "warm", [1] * 20, 4)])
    [slow] = scheduler.apply(Arrive(1.0, "slow", [2] * 1500, 4, ttft_deadline_s=0.1))
    assert isinstance(slow, Reject)
    assert (slow.reason, slow.retry_after_s is not None) == ("deadline", True)
    [past] = scheduler.apply(Arrive(0.0, "past", [2] * 15, 4, deadline_s=0.01))
    assert isinstance(past, Reject)
    assert (past.reason, "had passed" in past.message, past.retry_after_s) == ("deadline", True, None)
    [fine] = scheduler.apply(Arrive(1.0, "fine", [2] * 15, 4, ttft_deadline_s=1.0))
    assert isinstance(fine, Admit)
    assert fine.ttft_s == pytest.approx(1e-3 * 12, rel=0.5)


def test_a_total_deadline_that_the_output_cannot_meet_is_refused() -> None:
    scheduler = Scheduler(dataclasses.replace(CONFIG, prices=dataclasses.replace(SLOW, uncertainty=0.05)))
    VirtualEngine(scheduler, SLOW).run([Arrive(0.0, "warm", [1] * 20, 4)])
    [decision] = scheduler.apply(Arrive(0.1, "a", [2] * 20, 400, deadline_s=0.5))
    assert isinstance(decision, Reject)
    assert isinstance(scheduler.apply(Arrive(0.1, "b", [2] * 20, 20, deadline_s=0.5))[0], Admit)


def test_a_total_deadline_ends_a_sequence_that_decodes() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", [1, 2], 50, deadline_s=1.0)
    step(runner)
    assert step(runner, 0.5) == []
    assert step(runner, 1.5) == [Finish("a", "deadline", "its total deadline passed before its last token")]
    audit(scheduler)
    assert scheduler.stats().promises_broken == 1


def test_who_is_too_late_expires_before_its_prompt_costs_anything() -> None:
    scheduler = Scheduler(
        dataclasses.replace(CONFIG, prices=dataclasses.replace(SLOW, uncertainty=0.05), admission=False)
    )
    scheduler.apply(Arrive(0.0, "a", [1] * 20, 50))
    plan = scheduler.plan(0.0)
    scheduler.apply(StepDone(0.015, plan.step, [7], ms=15.0))
    scheduler.apply(Arrive(0.016, "b", [2] * 1000, 50, ttft_deadline_s=0.2))
    plan = scheduler.plan(0.017)
    assert plan.chunks == []
    assert scheduler.apply(StepDone(0.02, plan.step, [7], ms=5.0)) == [Expire("b")]


def test_unknown_tenants_are_refused_where_tenants_are_known() -> None:
    scheduler = Scheduler(dataclasses.replace(CONFIG, tenants={"a": 1.0, "b": 2.0}))
    decision = arrive(scheduler, "r", [1], 4, tenant="c")
    assert (decision.reason, decision.message) == ("invalid", "tenant 'c' is unknown; known: a, b")
    assert isinstance(arrive(scheduler, "s", [1], 4, tenant="b"), Admit)


def test_a_full_queue_says_when_to_come_back() -> None:
    scheduler, _ = make(max_queue=1, max_seqs=1)
    arrive(scheduler, "a", [1], 9)
    first, second = (arrive(scheduler, id, [1], 9) for id in "bc")
    assert (first.reason, second.reason) == ("queue_full", "queue_full")
    assert 0 < first.retry_after_s < second.retry_after_s


# Prompts that begin alike


def test_prompts_that_come_together_compute_what_they_share_once() -> None:
    scheduler, runner = make(max_step_tokens=100, max_seqs=8)
    shared = distinct(20)
    for i in range(4):
        arrive(scheduler, f"r{i}", [*shared, 500 + i, 600 + i], 3)
    arrive(scheduler, "other", distinct(10, 900), 3)
    computed = []
    for _ in range(2):
        plan = scheduler.plan(0.0)
        computed.append({chunk.id: chunk.num_tokens for chunk in plan.chunks})
        scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert computed[0] == {"r0": 22, "other": 10}, "the others wait one step; who shares nothing does not"
    assert computed[1] == {f"r{i}": 2 for i in (1, 2, 3)}
    run_dry(runner)


def test_nobody_is_held_twice() -> None:
    scheduler, runner = make(max_step_tokens=12, max_seqs=8, num_pages=100)
    shared = distinct(60)
    arrive(scheduler, "a", shared, 3)
    arrive(scheduler, "b", shared[:30], 3)
    waits = 0
    while scheduler.sequence("b").row < 0:
        step(runner)
        waits += 1
    assert waits <= 6, "five steps of the other's whole budget, and one"


# The parts


def test_a_forecast_by_hand() -> None:
    cost = CostModel(StepPrices(10.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    config = dataclasses.replace(CONFIG, max_seqs=20, max_step_tokens=100)
    idle = promises.Load(0, 0, 0, 0, 50, 0.0, 0.0, float("inf"))
    assert promises.forecast(cost, config, idle).first_ms == pytest.approx(50.0)
    behind = idle._replace(ahead_tokens=150)
    assert promises.forecast(cost, config, behind).first_ms == pytest.approx(200.0)
    bounded = behind._replace(num_decodes=10, context=1000, limit_ms=60.0)
    assert promises.forecast(cost, config, bounded).first_ms == pytest.approx(4 * 60.0)
    rows = bounded._replace(free_steps=30.0, row_steps=8.0)
    assert promises.forecast(cost, config, rows).first_ms == pytest.approx(4 * 60.0 + 26 * 10.0)
    assert promises.forecast(cost, config, rows).between_ms == pytest.approx(8.0 * 10.0)


def test_free_steps_and_what_is_left() -> None:
    lefts = promises.Lefts([2.0, 5.0, 9.0], 20.0)
    assert [promises.free_steps(lefts, missing) for missing in (0, 1, 3, 4, 7)] == [0.0, 2.0, 9.0, 22.0, 42.0]
    assert promises.free_steps(promises.Lefts([], 0.0), 3) == 0.0
    assert promises.expected_left(10, 100, 0.5) == 40.0
    assert promises.expected_left(60, 100, 0.5) == 20.0
    assert promises.expected_left(99, 100, 0.5) == 1.0


def test_the_margin_grows_with_who_is_late_and_shrinks_slowly() -> None:
    trust = promises.Trust()
    before = trust.margin
    trust.first_token_took(1.0, 3.0, 0.01)
    assert trust.margin > 1.05 * before
    for _ in range(2000):
        trust.first_token_took(1.0, 1.0, 0.01)
    assert trust.margin == 1.05


def test_the_pace_is_what_runs_of_steps_keep_to() -> None:
    clock, trust, over = random.Random(4), promises.Trust(), 0
    for count in range(8000):
        recent = trust._recent
        over += count >= 1000 and 1 + recent > trust.pace
        trust.step_was_off(clock.gauss(0.0, 0.25))
    assert 0 < over < 0.02 * 7000
    assert trust.pace < 1.25, "a run's mean wavers less than a step"
    for _ in range(2000):
        trust.step_was_off(0.0)
    assert trust.pace == 1.05


@pytest.mark.parametrize("field", ["ttft_deadline_s", "deadline_s", "tpot_target_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "soon"])
def test_promises_that_cannot_be_are_refused_by_name(field: str, value: object) -> None:
    scheduler, _ = make()
    decision = arrive(scheduler, "a", [1], 4, **{field: value})
    assert (decision.reason, field in decision.message) == ("invalid", True)


# Tenants


def test_a_tenant_that_floods_does_not_starve_another() -> None:
    flood = [Arrive(0.0, f"flood{i}", [i] * 200, 50, tenant="flood") for i in range(200)]
    few = [Arrive(1.0 + i, f"few{i}", [1000 + i] * 200, 50, tenant="few") for i in range(5)]
    _, _, stories = run(SLOW, [*flood, *few], max_seqs=8, max_step_tokens=128)
    by_tenant = {name: [s.first_s for s in stories if s.arrival.tenant == name] for name in ("flood", "few")}
    assert max(by_tenant["few"]) < 0.1 * max(by_tenant["flood"])


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_are_served_by_their_weights(weight: float) -> None:
    arrivals = [Arrive(0.0, f"{name}{i}", [ord(name) + i] * 60, 30, tenant=name) for i in range(80) for name in "ab"]
    scheduler = Scheduler(dataclasses.replace(CONFIG, max_seqs=4, tenants={"a": weight, "b": 1.0}))
    engine = VirtualEngine(scheduler, SLOW)
    stories = engine.run(arrivals).values()
    first = Counter(s.arrival.tenant for s in sorted(stories, key=lambda s: s.first_s)[:60])
    assert first["a"] / first["b"] == pytest.approx(weight, rel=0.15)


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    early = [Arrive(0.0, f"a{i}", [i] * 60, 30, tenant="a") for i in range(60)]
    late = [Arrive(3.0, f"{name}{i}", [500 + i] * 60, 30, tenant=name) for i in range(40) for name in "ab"]
    for event in late[::2]:
        object.__setattr__(event, "id", event.id + "late")
    _, _, stories = run(SLOW, [*early, *late], max_seqs=4)
    after = sorted((s for s in stories if s.arrival.t + s.first_s > 3.0), key=lambda s: s.arrival.t + s.first_s)[:30]
    assert 12 <= sum(s.arrival.tenant == "b" for s in after) <= 18


def test_time_alone_expires_and_is_replayed() -> None:
    scheduler, runner = make(max_seqs=1)
    arrive(scheduler, "a", [1], 90)
    step(runner)
    arrive(scheduler, "b", [2], 5, ttft_deadline_s=1.0)
    assert scheduler.apply(Abort(2.0, "")) == [Expire("b")]
    assert scheduler.stats().expired == 1


def test_prices_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match=r"prices\.token_ms must be a finite number, at least 0; got -1"):
        StepPrices(token_ms=-1)
