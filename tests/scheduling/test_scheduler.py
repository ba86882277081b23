# SPDX-License-Identifier: Apache-2.0
"""What the scheduler promises, one promise a test: batches, ends, failures. The symbolic runner checks all pages."""

from __future__ import annotations

import math

import pytest
from scheduler_audit import audit
from symbolic_runner import (
    CONFIG,
    arrive,
    distinct,
    endings,
    fail_step,
    make,
    num_open,
    run_dry,
    step,
    sum_sampler,
)

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.watched import Planned, WatchedScheduler
from pagedserve.scheduling.events import (
    Abort,
    Admit,
    Arrive,
    Decision,
    Drain,
    Expire,
    Finish,
    Reject,
    Resize,
    StepDone,
    StepFailed,
)
from pagedserve.scheduling.scheduler import Scheduler

# Batches


def test_a_prompt_comes_in_chunks_then_one_token_a_step() -> None:
    scheduler, runner = make(max_step_tokens=8)
    assert arrive(scheduler, "a", distinct(18), 3) == Admit("a")
    seen = []
    while (plan := scheduler.plan(0.0)) is not None:
        seen.append((list(plan.decode_ids), [(c.start, c.num_tokens, c.samples) for c in plan.chunks]))
        made = scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert seen == [
        ([], [(0, 8, False)]),
        ([], [(8, 8, False)]),
        ([], [(16, 2, True)]),
        (["a"], []),
        (["a"], []),
    ]
    assert made == [Finish("a", "length")]


def test_decodes_go_first_and_prompts_fill_the_budget() -> None:
    scheduler, runner = make(max_step_tokens=10)
    arrive(scheduler, "a", [1, 2], 20)
    step(runner)
    arrive(scheduler, "b", distinct(30), 4)
    for _ in range(4):
        plan = scheduler.plan(0.0)
        assert list(plan.decode_ids) == ["a"]
        assert plan.shape.num_tokens <= 10
        scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert len(scheduler.sequence("b").tokens) == 31


def test_the_list_of_decode_rows_changes_only_with_who_decodes() -> None:
    scheduler, runner = make()
    for id in "abc":
        arrive(scheduler, id, distinct(5, ord(id)), 30)
    step(runner)
    lists = []
    for _ in range(6):
        plan = scheduler.plan(0.0)
        lists.append(plan.decode_rows)
        scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert all(rows is lists[0] for rows in lists)
    scheduler.apply(Abort(0.0, "b"))
    plan = scheduler.plan(0.0)
    assert plan.decode_rows is not lists[0]
    assert sorted(zip(plan.decode_ids, plan.decode_rows, strict=True)) == [("a", 0), ("c", 2)]
    assert lists[0] == [0, 1, 2]


def test_a_graph_is_named_where_one_holds_the_step() -> None:
    scheduler, runner = make()
    buckets = []
    for id in "abcde":
        arrive(scheduler, id, [1, ord(id)], 30)
        for _ in range(2):
            plan = scheduler.plan(0.0)
            buckets.append(plan.graph_bucket)
            scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert buckets == [0, 1, 0, 4, 0, 4, 0, 4, 0, 0]


def test_one_step_at_a_time() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", [1], 4)
    plan = scheduler.plan(0.0)
    with pytest.raises(InvalidInput, match="step 0 is in flight"):
        scheduler.plan(0.0)
    with pytest.raises(InvalidInput, match="step 5 came"):
        scheduler.apply(StepDone(0.0, 5, [1]))
    with pytest.raises(InvalidInput, match="samples 1 tokens; its result has 2"):
        scheduler.apply(StepDone(0.0, plan.step, [1, 2]))
    with pytest.raises(InvalidInput, match="no sequence 'z'"):
        scheduler.apply(StepDone(0.0, plan.step, [1], ["z"]))
    scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    with pytest.raises(InvalidInput, match="not in flight"):
        scheduler.apply(StepFailed(0.0, plan.step))


def test_nothing_to_do_is_no_plan_and_no_change() -> None:
    records = []
    scheduler = WatchedScheduler(CONFIG, lambda record, made: records.append(record))
    assert scheduler.plan(0.0) is None
    assert scheduler.plan(1.0) is None
    assert records == []


@pytest.mark.parametrize("event", [Abort(math.nan, "a"), Drain(math.inf), Resize(0.0, 0), Planned(0.0, 0, 0)])
def test_events_that_cannot_be(event) -> None:
    with pytest.raises(InvalidInput):
        Scheduler(CONFIG).apply(event)


# Ends


def test_a_stop_token_ends_it_and_is_kept() -> None:
    scheduler, runner = make(sampled=9)
    arrive(scheduler, "a", [1, 2], 10, stop_token_ids=frozenset([9]), min_tokens=3)
    arrive(scheduler, "b", [1, 3], 5, stop_token_ids=frozenset([8]))
    sequence = scheduler.sequence("a")
    assert endings(run_dry(runner)) == {"a": "stop", "b": "length"}
    assert sequence.tokens.tolist() == [1, 2, 9, 9, 9]


def test_requests_that_never_fit_are_refused_at_arrival() -> None:
    scheduler, _ = make(num_pages=8)
    assert arrive(scheduler, "a", [1] * 30, 3) == Admit("a")
    pool = arrive(scheduler, "b", [1] * 30, 4)
    assert (pool.reason, "the whole pool has 8" in pool.message) == ("never_fits", True)
    length = arrive(scheduler, "c", [1] * 100, 29)
    assert (length.reason, "max_model_len 128" in length.message) == ("never_fits", True)


def test_an_id_is_taken_until_its_request_is_over() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", [1], 2)
    twice = arrive(scheduler, "a", [5, 6], 2)
    assert (twice.reason, "is not over yet" in twice.message) == ("invalid", True)
    assert endings(run_dry(runner)) == {"a": "length"}
    assert arrive(scheduler, "a", [1], 2) == Admit("a")


def test_the_queue_is_bounded_where_asked() -> None:
    scheduler, runner = make(max_queue=2, max_seqs=1)
    assert [type(arrive(scheduler, id, [1], 9)) for id in "abc"] == [Admit, Admit, Reject]
    step(runner)
    assert isinstance(arrive(scheduler, "d", [1], 9), Reject), "the place is kept for c"
    assert scheduler.apply(Arrive(0.1, "c", [1], 9)) == [Admit("c")]
    assert arrive(scheduler, "e", [1], 9).reason == "queue_full"


def test_drain_finishes_what_it_has() -> None:
    scheduler, runner = make(max_seqs=1)
    arrive(scheduler, "a", [1], 3)
    arrive(scheduler, "b", [1], 3)
    scheduler.apply(Drain(0.0))
    assert arrive(scheduler, "c", [1], 3).reason == "draining"
    assert endings(run_dry(runner)) == {"a": "length", "b": "length"}


def test_a_deadline_that_passes_in_the_queue_costs_no_prompt() -> None:
    scheduler, runner = make(max_seqs=1)
    arrive(scheduler, "a", [1], 9, ttft_deadline_s=1.0)
    step(runner)
    arrive(scheduler, "b", [1], 9, ttft_deadline_s=2.0)
    arrive(scheduler, "c", [1], 9, deadline_s=3.0)
    arrive(scheduler, "d", [1], 9, ttft_deadline_s=50.0)
    assert step(runner, 1.5) == []
    assert step(runner, 2.5) == [Expire("b")]
    assert scheduler.apply(Abort(3.0, "nobody")) == [Expire("c")]
    assert endings(run_dry(runner, 3.0)) == {"a": "length", "d": "length"}


def test_a_step_whose_sequence_was_aborted_meanwhile_drops_its_token() -> None:
    scheduler, runner = make()
    runner.sample = sum_sampler(50)
    for id in "abc":
        arrive(scheduler, id, [1, ord(id)], 9)
    sequence, last = scheduler.sequence("b"), scheduler.sequence("c")
    for times in range(3):
        plan = scheduler.plan(0.0)
        tokens, _ = runner.compute(plan)
        if times == 1:
            assert scheduler.apply(Abort(0.0, "b")) == [Finish("b", "abort")]
            assert scheduler.apply(Abort(0.0, "b")) == []
            audit(scheduler)
        scheduler.apply(StepDone(0.0, plan.step, tokens))
    assert len(sequence.tokens) == 3
    assert all(last.tokens[i] == runner.sample(last.tokens[:i]) for i in range(2, len(last.tokens)))
    assert endings(run_dry(runner)) == {"a": "length", "c": "length"}


def test_an_abort_while_its_prompt_is_computed() -> None:
    scheduler, runner = make(max_step_tokens=8)
    arrive(scheduler, "a", distinct(20), 9)
    step(runner)
    plan = scheduler.plan(0.0)
    runner.compute(plan)
    scheduler.apply(Abort(0.0, "a"))
    assert scheduler.apply(StepDone(0.0, plan.step, [])) == []
    assert (num_open(scheduler), scheduler.stats().pages_cached) == (0, 2), "only what was computed before is kept"


# Failures


def test_a_failed_step_is_tried_one_by_one_to_find_who_fails() -> None:
    scheduler, runner = make()
    for id in "abc":
        arrive(scheduler, id, [1, ord(id)], 6)
    step(runner)
    arrive(scheduler, "d", distinct(6), 6)
    plan = scheduler.plan(0.0)
    assert fail_step(runner, plan) == []
    alone = []
    for _ in range(4):
        plan = scheduler.plan(0.0)
        alone += [*plan.decode_ids, *(chunk.id for chunk in plan.chunks)]
        if alone[-1] == "b":
            assert fail_step(runner, plan, message="boom") == [Finish("b", "error", "boom")]
        else:
            assert scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0])) == []
        audit(scheduler)
    assert alone == ["a", "b", "c", "d"]
    assert len(scheduler.plan(0.0).decode_ids) == 3


def test_who_was_aborted_is_not_tried_alone() -> None:
    scheduler, runner = make()
    for id in "abc":
        arrive(scheduler, id, [1, ord(id)], 6)
    fail_step(runner, scheduler.plan(0.0))
    scheduler.apply(Abort(0.0, "b"))
    assert [step(runner) for _ in range(2)] == [[], []]
    assert sorted(scheduler.plan(0.0).decode_ids) == ["a", "c"]


def test_steps_that_fail_together_but_not_alone_still_end() -> None:
    scheduler, runner = make()
    for id in "abc":
        arrive(scheduler, id, [1, ord(id)], 6)
    ended: list[Decision] = []
    for _ in range(60):
        plan = scheduler.plan(0.0)
        if plan is None:
            break
        if len(plan.decode_ids) + len(plan.chunks) > 1:
            ended += fail_step(runner, plan)
        else:
            ended += scheduler.apply(StepDone(0.0, plan.step, runner.compute(plan)[0]))
    assert endings(ended) == dict.fromkeys("abc", "length")


def test_nonsense_ends_its_own_request_and_is_not_found_by_others() -> None:
    scheduler, runner = make(max_step_tokens=8)
    runner.poisonous.add("bad")
    arrive(scheduler, "bad", distinct(20), 9)
    step(runner)
    arrive(scheduler, "good", distinct(20), 9)  # finds what bad has computed so far
    ended = endings(run_dry(runner))
    assert ended["bad"] == "error"
    arrive(scheduler, "later", distinct(20), 9)
    assert endings(run_dry(runner)) == {"later": "length"}


def test_nonsense_of_an_aborted_request_fails_one_other_at_most() -> None:
    scheduler, runner = make(max_step_tokens=8)
    runner.poisonous.add("bad")
    arrive(scheduler, "bad", distinct(20), 9)
    step(runner)
    scheduler.apply(Abort(0.0, "bad"))
    arrive(scheduler, "unlucky", distinct(20), 9)
    arrive(scheduler, "later", distinct(20), 9, after="unlucky")
    assert endings(run_dry(runner)) == {"unlucky": "error", "later": "length"}


def test_a_failure_leaves_what_others_proved_sound() -> None:
    scheduler, runner = make()
    arrive(scheduler, "a", distinct(20), 4)
    run_dry(runner)
    arrive(scheduler, "b", [*distinct(20), 1, 2, 3, 4, 5], 9)
    step(runner)
    plan = scheduler.plan(0.0)
    tokens, _ = runner.compute(plan)
    assert endings(scheduler.apply(StepDone(0.0, plan.step, tokens, ["b"]))) == {"b": "error"}
    arrive(scheduler, "c", [*distinct(20), 1, 2, 3, 4, 5], 4)
    step(runner)
    assert scheduler.sequence("c").prefix_hit_tokens == 20


def test_the_lists_of_a_plan_are_copied_once_however_many_leave() -> None:
    scheduler, runner = make()
    for id in "abcd":
        arrive(scheduler, id, distinct(5, ord(id)), 30)
    step(runner)
    plan = scheduler.plan(0.0)
    scheduler.apply(Abort(0.0, "a"))
    rows = scheduler._decodes.rows
    scheduler.apply(Abort(0.0, "c"))
    assert rows is scheduler._decodes.rows is not plan.decode_rows
    assert list(plan.decode_ids) == list("abcd")
