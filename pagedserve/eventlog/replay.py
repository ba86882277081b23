# SPDX-License-Identifier: Apache-2.0
"""A session again, without a model: bit for bit as it was, or as it would have been under another config."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pagedserve.eventlog.codec import Session
from pagedserve.eventlog.watched import Planned, Record
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import (
    Abort,
    Arrive,
    Decision,
    Drain,
    Event,
    Expire,
    Finish,
    Preempt,
    Reject,
    Resize,
    StepDone,
    StepPlan,
)
from pagedserve.scheduling.scheduler import Scheduler

STARVED_WAIT_S = 0.02  # as the engine's


def replay(config: SchedulerConfig, records: Iterable[Record]) -> Iterator[tuple[list[Decision], StepPlan | None]]:
    """For each record what a new scheduler decides or, where it is a Planned, plans: the same as in the first run."""
    scheduler = Scheduler(config)
    for record in records:
        if isinstance(record, Planned):
            yield [], scheduler.plan(record.t)
        else:
            yield scheduler.apply(record), None


@dataclass(slots=True)
class Comparison:
    """What a replay made of a session. decisions: plans counted as one each."""

    decisions: int = 0
    differences: list[str] = field(default_factory=list)


def compare(session: Session) -> Comparison:
    """Replay it, and compare every decision and every plan."""
    result = Comparison()
    replayed = replay(session.config, (entry.record for entry in session.entries))
    for number, ((record, decided), (again, plan)) in enumerate(zip(session.entries, replayed, strict=True), 2):
        if isinstance(record, Planned):
            was: object = (record.step, record.num_tokens, record.predicted_ms)
            now: object = None if plan is None else (plan.step, plan.shape.num_tokens, plan.predicted_ms)
        else:
            was, now = decided, again
        result.decisions += 1 if isinstance(record, Planned) else max(len(decided), len(again))
        if was != now:
            result.differences.append(f"line {number}, {type(record).__name__}: decided {was}, now {now}")
    return result


@dataclass(slots=True)
class Outcome:
    """What became of a session's requests. Times in seconds; ttft_s and tpot_s of those served, rising."""

    requests: int = 0
    served: int = 0
    on_time: int = 0
    rejected: int = 0
    expired: int = 0
    cut: int = 0  # at their total deadline
    preemptions: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Visit:
    arrival: Arrive
    number: int
    tokens: int = 0
    first_s: float = math.nan


class _Book:
    """Follows requests to an outcome. lengths: of outputs that ended of themselves, by the request's number."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.visits: dict[str, _Visit] = {}
        self.lengths: dict[int, int] = {}

    def take(self, event: Event, decisions: Iterable[Decision], sampled: Iterable[str] = ()) -> None:
        """An event, whose tokens go to `sampled`."""
        outcome = self.outcome
        if isinstance(event, Arrive):
            self.visits.setdefault(event.id, _Visit(event, outcome.requests))
            outcome.requests += 1
        for id in sampled:
            if (visit := self.visits.get(id)) is not None:
                visit.tokens += 1
                visit.first_s = event.t if visit.tokens == 1 else visit.first_s
        for decision in decisions:
            if isinstance(decision, Preempt):
                outcome.preemptions += 1
            elif isinstance(decision, Reject):
                outcome.rejected += 1
                if self.visits[decision.id].arrival is event:
                    del self.visits[decision.id]
            elif isinstance(decision, (Finish, Expire)):
                self._end(self.visits.pop(decision.id), decision, event.t)

    def close(self) -> Outcome:
        """The outcome, once nothing follows."""
        self.outcome.ttft_s.sort()
        self.outcome.tpot_s.sort()
        return self.outcome

    def _end(self, visit: _Visit, decision: Finish | Expire, t: float) -> None:
        outcome, arrival = self.outcome, visit.arrival
        if isinstance(decision, Expire):
            outcome.expired += 1
        elif decision.reason == "deadline":
            outcome.cut += 1
        elif visit.tokens and decision.reason != "error":
            outcome.served += 1
            ttft_s, total_s = visit.first_s - arrival.t, t - arrival.t
            outcome.ttft_s.append(ttft_s)
            if visit.tokens > 1:
                outcome.tpot_s.append((t - visit.first_s) / (visit.tokens - 1))
            if decision.reason != "length":
                self.lengths[visit.number] = visit.tokens
            is_on_time = ttft_s <= (arrival.ttft_deadline_s or math.inf) and total_s <= (arrival.deadline_s or math.inf)
            outcome.on_time += is_on_time


def _as_logged(session: Session) -> tuple[_Book, StepPrices]:
    """What became of its requests, and what its scheduler learnt of the prices of steps."""
    book, scheduler, sampling = _Book(), Scheduler(session.config), list[str]()
    for record, decisions in session.entries:
        if isinstance(record, Planned):
            plan = scheduler.plan(record.t)
            sampling = [] if plan is None else _sampling(plan)
        else:
            scheduler.apply(record)
            book.take(record, decisions, sampling if isinstance(record, StepDone) else ())
    return book, scheduler.admission.cost.prices


def outcome(session: Session) -> Outcome:
    """What became of its requests, as logged."""
    return _as_logged(session)[0].close()


def what_if(session: Session, config: SchedulerConfig, **promised: Any) -> Outcome:
    """The session's requests in virtual time, under another config; steps cost what the session's own taught.

    A request that stopped of itself gives as many tokens again; any other, as many as it asked for. Aborts are not
    repeated: they answered waits that are no more.

    Args:
        promised: ttft_deadline_s, tpot_target_s or deadline_s to put in place of every request's own.
    """
    logged, law = _as_logged(session)
    coming = deque(record for record, _ in session.entries if isinstance(record, (Arrive, Resize, Drain)))
    scheduler, book, t = Scheduler(config), _Book(), -math.inf
    while True:
        while coming and (coming[0].t <= t or not book.visits):
            event = coming.popleft()
            t = max(t, event.t)
            if isinstance(event, Arrive):
                length = logged.lengths.get(book.outcome.requests, event.max_tokens)
                changes: dict[str, Any] = {"max_tokens": length, "stop_token_ids": frozenset(), "min_tokens": 0}
                event = replace(event, **changes, **promised)
            book.take(event, scheduler.apply(event))
        plan = scheduler.plan(t)
        if plan is not None:
            ms = law.ms(plan.shape)
            t += ms / 1e3
            sampling = _sampling(plan)
            done = StepDone(t, plan.step, [0] * len(sampling), ms=ms)
            book.take(done, scheduler.apply(done), sampling)
        elif book.visits:
            t += STARVED_WAIT_S
            book.take(Abort(t, ""), scheduler.apply(Abort(t, "")))  # of nobody: only time goes on
        elif not coming:
            return book.close()


def _sampling(plan: StepPlan) -> list[str]:
    return [*plan.decode_ids, *(chunk.id for chunk in plan.chunks if chunk.samples)]
