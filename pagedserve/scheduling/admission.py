# SPDX-License-Identifier: Apache-2.0
"""Who comes in and who starts: predicts a newcomer's wait from all that stands before it, learns from what came."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pagedserve.scheduling import policy, promises
from pagedserve.scheduling.batch import DecodeBatch, Flight
from pagedserve.scheduling.bookings import Bookings
from pagedserve.scheduling.config import SchedulerConfig, SchedulerStats
from pagedserve.scheduling.cost import CostModel, StepShape
from pagedserve.scheduling.memory import Memory
from pagedserve.scheduling.queue import FairQueue, SequenceHeap
from pagedserve.scheduling.request import Sequence, State

Refusal = tuple[str, str] | tuple[str, str, float | None, float | None]  # a Reject's fields but the id


@dataclass(eq=False)
class Admission:
    """On the scheduler's own parts."""

    _config: SchedulerConfig
    _memory: Memory
    _queue: FairQueue
    _deadlines: SequenceHeap
    _decodes: DecodeBatch
    _prompts: list[Sequence]
    _rows: list[int]  # free ones

    def __post_init__(self) -> None:
        self.cost, self.trust, self.bookings = CostModel(self._config.prices), promises.Trust(), Bookings()
        self.targets = SequenceHeap(lambda seq, key: seq.state is State.RUNNING)  # of TPOT, of those that run
        self.draining = False  # nobody is taken any more
        self._done_s = -math.inf  # when the last step was done
        self._lefts: promises.Lefts | None = None  # of those that run, when last asked for; None since they changed

    @property
    def limit_ms(self) -> float:
        """What a step may take by the TPOT targets of those that run."""
        first, common = self.targets.head(), self._config.tpot_target_s
        own = math.inf if first is None else first.arrival.tpot_target_s or math.inf
        return min(own, common or math.inf) * 1e3 / (self.trust.stretch * self.trust.pace)

    def drain_s(self) -> float:
        """Until everybody who waits has a first token."""
        waiting = self._queue.num_tokens
        return self._forecast(self._count_lefts(), waiting, 0).first_ms / 1e3 * self.trust.stretch if waiting else 0.0

    def refusal(self, seq: Sequence, now: float, num_pages: int, num_waiting: int) -> Refusal | None:
        """Why a newcomer cannot be served, or not in time; or None."""
        if self.draining:
            return "draining", "the engine finishes what it has and takes no more requests"
        config, trust, tenants = self._config, self.trust, self._config.tenants
        if tenants and seq.arrival.tenant not in tenants:
            return "invalid", f"tenant {seq.arrival.tenant!r} is unknown; known: {', '.join(sorted(tenants))}"
        problem = policy.never_fits(seq.num_prompt, seq.arrival.max_tokens, config, num_pages)
        if problem is not None:
            return "never_fits", problem
        if seq.due_s <= now:
            return "deadline", "its deadline had passed when it came; give it more time"
        who = seq.arrival.tenant, seq.id
        seq.has_place = self.bookings.claim(who, now)
        num_held, held_s = (0, 0.0) if seq.has_place else self.bookings.held(now)
        most = config.max_queue
        is_full = most is not None and num_waiting + min(num_held, most // 2) >= most
        if not is_full and seq.due_s == math.inf:
            return None
        own_tokens = seq.num_prompt - self._memory.num_cached(seq)
        self._lefts = self._lefts or self._count_lefts()
        ahead_tokens = self._queue.ahead(seq.arrival.tenant, seq.arrival.priority, own_tokens)
        wait = self._forecast(self._lefts, ahead_tokens, own_tokens)
        first_s, step_s, between_s = (ms / 1e3 * trust.stretch for ms in wait)
        if is_full:
            message = f"{num_waiting} requests wait and {num_held} places are kept, of max_queue {most}; retry later"
            return "queue_full", message, *self.bookings.book(who, now, between_s, between_s)
        end_s = first_s + step_s * (promises.expected_left(0, seq.arrival.max_tokens, trust.output_share) - 1)
        seq.predicted_s = now - seq.arrival.t + first_s
        seq.had_to_wait = self._queue.num > 0 or not self._rows
        margin = 1.0 if seq.has_place else trust.margin
        held_s = min(held_s, (seq.due_s - now) / 2)  # of its time, half at most is others'
        over_s = now + max(first_s * margin + held_s - seq.first_due_s, end_s * margin + held_s - seq.end_due_s)
        is_fresh = len(self._decodes) + len(self._prompts) > 0 or now - self._done_s <= promises.STALE_S
        if over_s <= 0 or not (config.admission and self.cost.is_known and is_fresh):
            return None
        message = f"its first token would come after {first_s:.3g} s, its last after {end_s:.3g} s; retry later"
        return "deadline", message, *self.bookings.book(who, now, over_s, between_s)

    def start(self, now: float, held: list[Sequence]) -> Sequence | None:
        """Give the head of the queue a row and pages; None where there is no head, row or place.

        Who begins with what this step computes for another is held back: it finds that computed in the next.
        """
        while (seq := self._queue.head()) is not None and self._rows:
            num_running, pages = len(self._decodes) + len(self._prompts), self._memory.pages
            if num_running and pages.num_available < seq.needs_pages:
                return None
            if seq.due_s <= now or (num_running and self._is_too_late(seq, now)):
                self._queue.remove(seq)
                seq.due_s = min(seq.due_s, now)  # the next event lets it expire
                self._deadlines.push(seq.due_s, seq)
                continue
            reserve = policy.watermark_pages(self._config, pages.num_pages, num_running)
            was_held = seq.was_held
            if self._memory.admit(seq, self._rows[0], reserve):
                self._begin(seq)
                return seq
            if was_held or not seq.was_held:
                return None
            self._queue.remove(seq)
            held.append(seq)
        return None

    def _begin(self, seq: Sequence) -> None:
        """seq has pages, and gets a row."""
        if not seq.num_starts:
            seq.expected_tokens = promises.expected_left(0, seq.arrival.max_tokens, self.trust.output_share)
            self._queue.charge(seq, seq.waiting_tokens + policy.OUTPUT_PRICE * seq.expected_tokens)
        self._queue.remove(seq)
        seq.num_starts += 1
        seq.row = heapq.heappop(self._rows)
        seq.state = State.RUNNING
        self._prompts.append(seq)
        if seq.due_s != seq.end_due_s:
            seq.due_s = seq.end_due_s
            if seq.due_s < math.inf:
                self._deadlines.push(seq.due_s, seq)
        if seq.arrival.tpot_target_s is not None:
            self.targets.push(seq.arrival.tpot_target_s, seq)

    def _is_too_late(self, seq: Sequence, now: float) -> bool:
        """The first token of a sequence that never ran would come after its deadline if it started now."""
        if seq.num_starts or seq.due_s == math.inf or not self.cost.is_known:
            return False
        decodes = self._decodes
        load = promises.Load(len(decodes), decodes.context, 0, 0, seq.waiting_tokens, 0.0, 0.0, self.limit_ms)
        return now + promises.forecast(self.cost, self._config, load).first_ms / 1e3 > seq.due_s

    def changed(self) -> None:
        """Who runs is about to change."""
        self._lefts = None

    def measure(self, flight: Flight, ends_s: Iterable[float], took_ms: Callable[[int], float]) -> None:
        """What the times of steps say of their cost: of the flight's, and of those like it that followed at once.

        Steps that only decode are alike: one in four is looked at. took_ms: of the first, of the second...
        """
        shape, step, t = flight.plan.shape, flight.plan.step, flight.t
        for i, end_s in enumerate(ends_s):
            if flight.prompts or (step + i) % 4 == 0 or self.cost.num_measured < 32 or self.cost.error > 0.3:
                ms = took_ms(i)
                if ms > 0 and t - self._done_s < ms / 1e3:
                    self.trust.period_took(ms / 1e3, end_s - self._done_s)
                self.cost.learn(shape.later(i) if i else shape, ms)
                self.trust.step_was_off(self.cost.latest if self.cost.num_measured > 32 else 0.0)  # not while a guess
            self._done_s = t = end_s

    def first_token(self, seq: Sequence, now: float) -> None:
        """seq gets its first token now."""
        seq.is_late = now > seq.first_due_s
        if seq.had_to_wait:
            step_s = self.cost.ms(StepShape(len(self._decodes), len(self._decodes), self._decodes.context, 0)) / 1e3
            self.trust.first_token_took(seq.predicted_s, now - seq.arrival.t, step_s)

    def ended(self, seq: Sequence, reason: str, stats: SchedulerStats) -> None:
        """seq is over: were its promises kept, and what did its tenant have."""
        produced, is_served = len(seq.tokens) - seq.num_prompt, reason in ("stop", "length")
        stats.expired += reason == "expired"
        if seq.first_due_s < math.inf or seq.end_due_s < math.inf:
            stats.promises_kept += is_served and not seq.is_late
            stats.promises_broken += seq.is_late or reason in ("expired", "deadline")
        if is_served:
            self.trust.output_was(produced, seq.arrival.max_tokens)
        if seq.num_starts:
            self._queue.charge(seq, policy.OUTPUT_PRICE * (produced - seq.expected_tokens))

    def _count_lefts(self) -> promises.Lefts:
        return promises.Lefts.of(self._decodes.seqs + self._prompts, self.trust.output_share)

    def _forecast(self, lefts: promises.Lefts, ahead_tokens: int, own_tokens: int) -> promises.Forecast:
        """For a newcomer of own_tokens, behind ahead_tokens that wait and the prompts begun."""
        decodes, pages, queue = self._decodes, self._memory.pages, self._queue
        ahead_seqs = round(ahead_tokens * queue.num / max(1, queue.num_tokens))
        begun = sum(len(seq.tokens) - seq.computed for seq in self._prompts)
        held = (pages.num_pages - pages.num_available) / max(1, len(lefts.tokens))
        missing_pages = (ahead_tokens + own_tokens) / self._config.page_size - pages.num_available
        missing = max(ahead_seqs + 1 - len(self._rows), math.ceil(missing_pages / max(1.0, held)))
        steps = promises.free_steps(lefts, missing), lefts.cycle / max(1, len(lefts.tokens)) if missing > 0 else 0.0
        ahead = ahead_seqs + len(self._prompts), ahead_tokens + begun
        load = promises.Load(len(decodes), decodes.context, *ahead, own_tokens, *steps, self.limit_ms)
        return promises.forecast(self.cost, self._config, load)
