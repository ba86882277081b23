# SPDX-License-Identifier: Apache-2.0
"""What the scheduler promises about pages: prefixes found, sequences preempted and swapped, pools resized."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from scheduler_audit import audit
from symbolic_runner import (
    SymbolicRunner,
    arrive,
    distinct,
    endings,
    fail_step,
    make,
    preempted,
    run_dry,
    step,
    sum_sampler,
)

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.events import (
    Abort,
    Admit,
    Arrive,
    Decision,
    Finish,
    Resize,
    StepDone,
)
from pagedserve.scheduling.scheduler import Scheduler

# Prefixes


def test_a_second_request_finds_the_pages_of_the_first_while_that_runs() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", distinct(10), 30)
    step(runner)
    arrive(scheduler, "b", distinct(10), 4)
    plan = scheduler.plan(0.0)
    assert [(c.start, c.num_tokens) for c in plan.chunks] == [(9, 1)]
    assert len(plan.copies) == 1
    scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    stats = scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_query_tokens, stats.prefix_hit_tokens) == (2, 20, 9)
    run_dry(runner)


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", distinct(6), 9)
    run_dry(runner)
    arrive(scheduler, "b", distinct(6) + [7] * 9 + [1, 2, 3], 4)
    step(runner)
    assert scheduler.sequence("b").prefix_hit_tokens == 14, "the last sampled token was never computed"


def test_salts_keep_prefixes_apart() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", distinct(10), 2, cache_salt="x")
    run_dry(runner)
    arrive(scheduler, "b", distinct(10), 2, cache_salt="y")
    run_dry(runner)
    assert scheduler.stats().prefix_hit_tokens == 0


def test_without_the_prefix_cache_nothing_is_kept() -> None:
    scheduler, runner = make(prefix_cache=False)
    for id in "ab":
        arrive(scheduler, id, distinct(10), 2)
        run_dry(runner)
    stats = scheduler.stats()
    assert (stats.pages_cached, stats.pages_free, stats.prefix_hit_tokens) == (0, 64, 0)


def test_equal_requests_at_once_end_up_on_the_same_pages() -> None:
    scheduler, runner = make()
    for i in range(4):
        arrive(scheduler, f"r{i}", distinct(8), 9)
    step(runner)
    step(runner)
    assert scheduler.stats().pages_used == 2 + 4


@pytest.mark.parametrize("length", [3, 8, 10])
def test_followers_wait_for_the_prompt_and_share_it(length: int) -> None:
    scheduler, runner = make(max_step_tokens=8)
    arrive(scheduler, "a", distinct(length), 9)
    for i in range(3):
        arrive(scheduler, f"a#{i}", distinct(length), 9, after="a")
    while scheduler.num_running < 4:
        plan = scheduler.plan(0.0)
        assert {chunk.id for chunk in plan.chunks} == {"a"} or "a" in plan.decode_ids
        scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert [scheduler.sequence(f"a#{i}").prefix_hit_tokens for i in range(3)] == [length - 1] * 3
    assert set(endings(run_dry(runner)).values()) == {"length"}


@pytest.mark.parametrize("fate", ["finished", "aborted", "unknown", "itself", "expired", "failed"])
def test_followers_start_whatever_became_of_whom_they_follow(fate: str) -> None:
    scheduler, runner = make(max_seqs=1)
    ended: list[Decision] = []
    if fate in ("finished", "aborted"):
        arrive(scheduler, "a", [1, 2], 2)
        ended += run_dry(runner) if fate == "finished" else scheduler.apply(Abort(0.0, "a"))
    elif fate in ("expired", "failed"):
        arrive(scheduler, "first", [3], 3)
        arrive(scheduler, "a", [1, 2], 2, ttft_deadline_s=1.0 if fate == "expired" else None)
    arrive(scheduler, "b", [1, 2], 2, after="b" if fate == "itself" else "a")
    ended += scheduler.apply(Abort(2.0, "nobody"))
    if fate == "failed":
        ended += scheduler.apply(Abort(2.0, "first"))
        ended += fail_step(runner, scheduler.plan(0.0))
    ended += run_dry(runner, 2.0)
    assert endings(ended)["b"] == "length"


def test_followers_of_an_aborted_one_start_even_mid_step() -> None:
    scheduler, runner = make(max_step_tokens=8)
    arrive(scheduler, "a", distinct(20), 9)
    arrive(scheduler, "b", distinct(20), 9, after="a")
    arrive(scheduler, "c", distinct(20), 9, after="b")
    plan = scheduler.plan(0.0)
    runner.compute(plan)
    scheduler.apply(Abort(0.0, "a"))
    scheduler.apply(StepDone(0.0, plan.step, []))
    assert endings(run_dry(runner)) == {"b": "length", "c": "length"}


# Memory


def test_running_out_of_pages_preempts_and_loses_no_token() -> None:
    scheduler, runner = make(num_pages=9, prefix_cache=False)
    runner.sample = sum_sampler(50)
    for i in range(4):
        arrive(scheduler, f"r{i}", distinct(8, 10 * i), 20)
    sequences = [scheduler.sequence(f"r{i}") for i in range(4)]
    made = run_dry(runner)
    assert set(endings(made).values()) == {"length"}
    assert "r0" not in preempted(made)
    stats = scheduler.stats()
    assert stats.preemptions == len(preempted(made)) > 0
    assert stats.recomputed_tokens > 0
    for sequence in sequences:
        for place in range(8, 28):
            assert sequence.tokens[place] == runner.sample(sequence.tokens[:place])


def test_no_victim_twice_in_a_row_while_there_is_another() -> None:
    scheduler, runner = make(num_pages=12, prefix_cache=False)
    for i in range(5):
        arrive(scheduler, f"r{i}", distinct(6, 10 * i), 20)
    made = run_dry(runner)
    victims = preempted(made)
    assert len(victims) > 3
    assert all(first != second for first, second in pairwise(victims))
    assert set(endings(made).values()) == {"length"}


def swapping(num_pages: int, output: int) -> tuple[Scheduler, SymbolicRunner]:
    """Four requests that outgrow the pool, and pages on the host that are cheap to go to."""
    scheduler, runner = make(num_pages=num_pages, num_host_pages=20, prefix_cache=False, swap_page_tokens=0.1)
    for i in range(4):
        arrive(scheduler, f"r{i}", distinct(8, 10 * i), output)
    return scheduler, runner


def until_preempted(runner: SymbolicRunner) -> list[Decision]:
    made: list[Decision] = []
    while not preempted(made):
        made += step(runner)
    return made


def test_swapping_moves_pages_instead_of_computing_again() -> None:
    scheduler, runner = swapping(num_pages=9, output=20)
    made = run_dry(runner)
    stats = scheduler.stats()
    assert stats.swaps == stats.preemptions > 0
    assert (stats.recomputed_tokens, stats.host_pages_used) == (0, 0)
    assert set(endings(made).values()) == {"length"}


def test_an_abort_of_who_is_swapped_out_frees_the_host() -> None:
    scheduler, runner = swapping(num_pages=9, output=20)
    made = until_preempted(runner)
    assert scheduler.stats().host_pages_used > 0
    scheduler.apply(Abort(0.0, preempted(made)[0]))
    assert scheduler.stats().host_pages_used == 0
    assert scheduler.plan(0.0).swap_out == [], "a swap that no plan carried yet is not made"
    audit(scheduler)


def test_a_prompt_waits_for_all_its_pages_and_the_watermark() -> None:
    scheduler, runner = make(num_pages=20, watermark=0.2)
    arrive(scheduler, "a", distinct(40), 2)
    step(runner)
    step(runner)
    arrive(scheduler, "b", distinct(28, 200), 9)
    assert scheduler.num_running == 0 or len(scheduler.plan(0.0).chunks) == 0


def test_the_watermark_keeps_pages_for_those_that_grow() -> None:
    scheduler, runner = make(num_pages=20, watermark=0.2, prefix_cache=False)
    arrive(scheduler, "a", distinct(39), 30)
    step(runner)
    step(runner)
    arrive(scheduler, "b", distinct(27, 200), 4)
    step(runner)
    assert scheduler.num_running == 1, "10 pages are free, b needs 7 and 4 are kept"
    arrive(scheduler, "c", distinct(3, 300), 4)
    step(runner)
    assert scheduler.num_running == 1, "nobody overtakes who is first in the queue"
    assert endings(run_dry(runner)) == dict.fromkeys("abc", "length")


def test_what_fits_alone_starts_alone_though_the_watermark_forbids() -> None:
    scheduler, runner = make(num_pages=8, watermark=0.9)
    arrive(scheduler, "a", distinct(30), 3)
    step(runner)
    arrive(scheduler, "b", distinct(30, 200), 3)
    assert endings(run_dry(runner)) == {"a": "length", "b": "length"}


def test_a_copy_is_forgone_where_its_source_is_needed_as_a_page() -> None:
    scheduler, runner = make(num_pages=8)
    arrive(scheduler, "a", distinct(29), 4)
    run_dry(runner)
    arrive(scheduler, "b", [*distinct(27), 1, 2, 3], 3)
    plan = scheduler.plan(0.0)
    assert plan.copies == []
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.chunks] == [(24, 6)]
    scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    run_dry(runner)


def test_priority_goes_ahead_by_seconds() -> None:
    scheduler, runner = make(max_seqs=1, priority_s=5.0)
    arrive(scheduler, "running", [1], 2)
    step(runner)
    arrive(scheduler, "early", [2], 1, t=1.0)
    arrive(scheduler, "soon", [3], 1, t=3.0, priority=1)
    arrive(scheduler, "late", [4], 1, t=7.0, priority=1)
    assert list(endings(run_dry(runner, 8.0))) == ["running", "soon", "early", "late"]


def test_shrinking_preempts_who_is_beyond_and_ends_who_cannot_fit() -> None:
    scheduler, runner = make(num_pages=16)
    arrive(scheduler, "big", distinct(30), 20)
    arrive(scheduler, "small", distinct(6, 300), 20)
    arrive(scheduler, "waiting", distinct(30, 400), 20)
    for _ in range(3):
        step(runner)
    made = scheduler.apply(Resize(0.0, 8))
    runner.lose_pages_from(8)
    audit(scheduler)
    assert endings(made) == {"big": "error", "waiting": "error"}
    assert all("the pool shrank" in decision.message for decision in made if isinstance(decision, Finish))
    assert preempted(made) == ["small"]
    assert scheduler.stats().pages_total == 8
    assert endings(run_dry(runner)) == {"small": "length"}
    scheduler.apply(Resize(0.0, 16))
    arrive(scheduler, "big", distinct(30), 20)
    assert endings(run_dry(runner)) == {"big": "length"}


def test_who_is_preempted_and_back_at_once_takes_one_page_at_a_time() -> None:
    scheduler, runner = make(num_pages=20, prefix_cache=False)
    for i in range(4):
        arrive(scheduler, f"r{i}", distinct(5, 10 * i), 8)
    step(runner)
    for id in ("r1", "r2"):
        scheduler.apply(Abort(0.0, id))
    assert preempted(scheduler.apply(Resize(0.0, 7))) == ["r3"]
    for _ in range(5):
        assert step(runner) == []
        sequence = scheduler.sequence("r3")
        assert len(sequence.pages) == math.ceil(len(sequence.tokens) / 4)
    assert endings(run_dry(runner)) == {"r0": "length", "r3": "length"}


def test_shrinking_waits_for_the_step_in_flight() -> None:
    scheduler, runner = make(num_pages=16)
    arrive(scheduler, "a", distinct(30), 20)
    plan = scheduler.plan(0.0)
    tokens, _ = runner.compute(plan)
    assert scheduler.apply(Resize(0.0, 8)) == []
    assert arrive(scheduler, "b", distinct(30), 20).reason == "never_fits"
    assert endings(scheduler.apply(StepDone(0.0, plan.step, tokens))) == {"a": "error"}
    assert scheduler.stats().pages_total == 8


def test_growing_and_shrinking_back_in_one_flight_ends_who_came_between() -> None:
    scheduler, runner = make(num_pages=4)
    arrive(scheduler, "a", [1], 4)
    plan = scheduler.plan(0.0)
    tokens, _ = runner.compute(plan)
    scheduler.apply(Resize(0.0, 8))
    assert arrive(scheduler, "b", distinct(20), 4) == Admit("b")
    scheduler.apply(Resize(0.0, 4))
    assert endings(scheduler.apply(StepDone(0.0, plan.step, tokens))) == {"b": "error"}
    assert endings(run_dry(runner)) == {"a": "length"}


def test_shrinking_after_a_swap_that_no_plan_carried_computes_again() -> None:
    scheduler, runner = swapping(num_pages=12, output=16)
    made = until_preempted(runner)
    scheduler.apply(Resize(0.0, 8))
    runner.lose_pages_from(8)
    assert scheduler.stats().host_pages_used == 0
    assert set(endings(made + run_dry(runner)).values()) == {"length"}


def test_a_finished_requests_state_is_no_longer_known() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", [1], 1)
    run_dry(runner)
    with pytest.raises(InvalidInput, match="no request 'a'"):
        scheduler.sequence("a")


# The runner that watches over the tests above


@pytest.mark.parametrize("lost", ["copies", "page_writes", "swap_in", "swap_out"])
def test_the_symbolic_runner_sees_a_move_that_was_not_made(lost: str) -> None:
    scheduler, runner = make(num_pages=64 if lost == "copies" else 9, num_host_pages=20, swap_page_tokens=0.1)
    for i in range(4):
        arrive(scheduler, f"r{i}", distinct(8, 10 * i), 20)
    scheduler.apply(Arrive(0.0, "r0#1", distinct(8, 0), 20, after="r0"))

    def run_all() -> None:
        while (plan := scheduler.plan(0.0)) is not None:
            getattr(plan, lost).clear()
            scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))

    with pytest.raises((AssertionError, KeyError)):
        run_all()
