# SPDX-License-Identifier: Apache-2.0
"""Places kept for those who were sent away: by hand, and what a time to come back is worth in virtual time."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbolic_runner import arrive, make
from virtual_engine import Story, VirtualEngine

from pagedserve.scheduling import bookings
from pagedserve.scheduling.bookings import HOLD_S, Bookings
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices, StepShape
from pagedserve.scheduling.events import Admit, Arrive, Reject
from pagedserve.scheduling.scheduler import Scheduler

# Made up, of a large model on an accelerator and of a small one on a processor.
FAST = StepPrices(weights_ms=6, token_ms=0.05, context_ms=3e-5, pair_ms=1e-6, seq_ms=0.02, step_ms=1.0)
SLOW = StepPrices(weights_ms=4.5, token_ms=0.45, context_ms=2.5e-4, pair_ms=2.5e-4, seq_ms=0.3, step_ms=0.5)
CONFIG = SchedulerConfig(num_pages=20_000, page_size=16, max_seqs=128, max_step_tokens=1024, max_model_len=2048)
A, B, C = ("", "a"), ("", "b"), ("shop", "a")


def test_times_follow_one_another_and_half_of_the_places_are_left() -> None:
    places = Bookings()
    assert [places.book(who, 10.0, 2.0, 0.5) for who in (A, B, C)] == [(t, HOLD_S) for t in (2.0, 3.0, 4.0)]
    assert places.book(("", "d"), 100.0, 1.0, 0.5) == (1.0, HOLD_S)


def test_a_place_is_its_owners_from_its_time_on_and_once() -> None:
    places = Bookings()
    places.book(A, 0.0, 5.0, 0.1)
    assert not places.claim(C, 5.0), "another tenant's request of the same id"
    assert not places.claim(A, 4.0), "too early"
    assert places.book(A, 4.0, 9.0, 0.1) == (1.0, HOLD_S), "and is told the same time again"
    assert places.claim(A, 5.0)
    assert not places.claim(A, 5.0)


def test_a_place_is_held_from_when_it_matters_less_and_less_and_then_no_more() -> None:
    places = Bookings()
    places.book(A, 0.0, 5.0, 0.4)
    assert places.held(3.0) == (0, 0.0)
    assert places.held(4.5) == (1, 0.4)
    assert places.held(5.0 + HOLD_S / 4) == (1, pytest.approx(0.3))
    assert places.held(5.0 + HOLD_S * 1.01) == (0, 0.0)
    assert not places.claim(A, 5.0 + HOLD_S * 1.01)


def test_who_never_comes_back_costs_little() -> None:
    places = Bookings()
    for i in range(40):
        start_s = 10.0 * i
        places.book(("", str(i)), start_s, 1.0, 0.4)
    places.book(A, 500.0, 1.0, 0.4)
    assert places.held(501.0)[1] < 0.05
    for i in range(40):
        places.book(("", str(i)), 600.0 + 10 * i, 1.0, 0.4)
        assert places.claim(("", str(i)), 601.0 + 10 * i)
    places.book(A, 1000.0, 1.0, 0.4)
    assert places.held(1001.0)[1] > 0.35


def test_places_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookings, "MOST", 3)
    places = Bookings()
    told = [places.book(("", str(i)), 0.0, 1.0, 0.1) for i in range(4)]
    assert [hold_s for _, hold_s in told] == [HOLD_S, HOLD_S, HOLD_S, None]
    assert told[3][0] == pytest.approx(1.6)
    assert places.book(A, 10.0, 1.0, 0.1)[1] == HOLD_S, "once the others are past"


def test_a_full_queue_keeps_a_place() -> None:
    scheduler, _ = make(max_queue=2, max_seqs=1)
    for id in "abc":
        arrive(scheduler, id, [1], 9)
    sent_away = arrive(scheduler, "d", [1], 9)
    assert isinstance(sent_away, Reject)
    assert (sent_away.reason, sent_away.hold_s) == ("queue_full", HOLD_S)
    back = Arrive(sent_away.retry_after_s or 0.0, "d", [1], 9)
    [again] = scheduler.apply(back)
    assert isinstance(again, Reject), "nobody left meanwhile"
    assert (scheduler.stats().places_claimed, scheduler.stats().places_kept) == (1, 0)


crowds = st.fixed_dictionaries(
    {
        "law": st.sampled_from([FAST, SLOW]),
        "load": st.floats(1.2, 6.0),  # over what a full batch decodes, about
        "prompt": st.integers(20, 400),
        "output": st.integers(5, 120),
        "ttft_s": st.floats(0.8, 3.0),
        "delay_s": st.floats(0.0, 0.9 * HOLD_S),
        "faithful": st.sampled_from([1.0, 1.0, 0.5]),
        "seed": st.integers(0, 9),
    }
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(crowds)
def test_who_comes_back_in_time_is_served_in_time(crowds: dict) -> None:
    """On a machine that stays as fast as it is: 19 of 20 find their place, and those who have one are on time."""
    rng = random.Random(crowds["seed"])
    law, output = crowds["law"], crowds["output"]
    limits = {"max_seqs": 16, "max_step_tokens": 256} if law is SLOW else {"max_seqs": 64}
    prices = dataclasses.replace(law, uncertainty=0.05)
    scheduler = Scheduler(dataclasses.replace(CONFIG, prices=prices, **limits))
    full = limits["max_seqs"]
    step_s = law.ms(StepShape(full, full, full * crowds["prompt"], 0)) / 1e3
    rate = crowds["load"] * full / (output * step_s)
    t, arrivals = 0.0, []
    while (t := t + rng.expovariate(rate)) < 4.0 and len(arrivals) < 400:
        length = max(1, round(crowds["prompt"] * rng.uniform(0.5, 1.5)))
        asked = max(1, round(output * rng.uniform(0.5, 1.5)))
        arrivals.append(
            Arrive(t, f"r{len(arrivals)}", [len(arrivals)] * length, asked, ttft_deadline_s=crowds["ttft_s"])
        )

    def returns(story: Story) -> float | None:
        if story.hold_s is None or rng.random() > crowds["faithful"]:
            return None
        return story.told_s + (story.retry_after_s or 0.0) + rng.random() * crowds["delay_s"]

    stories = VirtualEngine(scheduler, law, returns).run(arrivals).values()
    stats = scheduler.stats()
    assert stats.places_kept >= 0.95 * stats.places_claimed - 2
    back = [story for story in stories if story.before is not None and story.admitted]
    assert sum(story.on_time for story in back) >= 0.95 * len(back) - 1
    assert isinstance(scheduler.apply(Arrive(1e6, "later", [1], 1, ttft_deadline_s=1.0))[0], Admit)
