# SPDX-License-Identifier: Apache-2.0
"""Events in, decisions and step plans out: continuous batching over pages."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from pagedserve.errors import InvalidInput, require
from pagedserve.scheduling import events, policy
from pagedserve.scheduling.admission import Admission
from pagedserve.scheduling.batch import DecodeBatch, Flight, next_chunk
from pagedserve.scheduling.config import SchedulerConfig, SchedulerStats, is_count
from pagedserve.scheduling.cost import StepShape
from pagedserve.scheduling.events import Chunk, Decision, Event, Finish, Reject, StepPlan
from pagedserve.scheduling.memory import Memory
from pagedserve.scheduling.queue import FairQueue, SequenceHeap
from pagedserve.scheduling.request import Sequence, State, is_finite, read_prompt


class Scheduler:
    """Who computes what in the next step. Deterministic: the same calls give the same results, on any machine.

    Use: `apply` every event as it happens; when no step is in flight, `plan` one, compute it, and apply its StepDone
    or StepFailed. One thread at a time.

    Decode goes first: every sequence that decodes is in every step, and chunks of prompts fill what the budgets leave,
    in tokens and, beside decodes with a TPOT target, in predicted ms. A prompt starts when there are pages for all of
    it; a sequence that outgrows its pages takes them from a victim, which is queued again and loses no token.

    Cost of a step: an append per sequence that decodes, and work for those that start, end or fill a page.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._stats = SchedulerStats()  # only its counts
        self._memory = Memory(config, self._stats)
        self._seqs: dict[str, Sequence] = {}  # every request that is not over
        self._queue = FairQueue(config.tenants)
        self._deadlines = SequenceHeap(lambda seq, key: seq.state is not State.DONE and seq.due_s == key)
        self._decodes = DecodeBatch()
        self._prompts: list[Sequence] = []  # running, but no token sampled yet; in the order of their start
        self._rows = list(range(config.max_seqs))  # free ones; a heap
        parts = self._memory, self._queue, self._deadlines, self._decodes, self._prompts, self._rows
        self.admission = Admission(config, *parts)
        self._flight: Flight | None = None
        self._suspects: deque[tuple[Sequence, int]] = deque()  # of a failed step, to be tried alone; tokens tried
        self._num_pages, self._resized = config.num_pages, False  # the pool's size from the end of the step in flight
        self._decisions: list[Decision] = []  # of the event being applied
        self._outgrown: list[Sequence] = []  # by its tokens, their pages
        self._last_victim: Sequence | None = None
        self._now = -math.inf
        self._num_arrived = self._num_steps = 0

    def sequence(self, id: str) -> Sequence:
        """The request's state; InvalidInput where it is over or never came."""
        if id not in self._seqs:
            raise InvalidInput(f"no request {id!r} is waiting or running")
        return self._seqs[id]

    @property
    def num_running(self) -> int:
        """Requests that have a row."""
        return len(self._decodes) + len(self._prompts)

    @property
    def num_waiting(self) -> int:
        """Requests that are admitted and have no row."""
        return len(self._seqs) - self.num_running

    def stats(self) -> SchedulerStats:
        pages, host = self._memory.pages, self._memory.host
        return replace(
            self._stats,
            waiting=self.num_waiting,
            blocked=self.num_waiting - self._queue.num,
            running=self.num_running,
            pages_total=pages.num_pages,
            pages_used=pages.num_pages - pages.num_available,
            pages_cached=pages.num_idle,
            pages_free=pages.num_free,
            host_pages_used=host.num_pages - host.num_free,
            ttft_error=self.admission.trust.error,
            step_error=self.admission.cost.error,
            drain_s=self.admission.drain_s(),
        )

    def apply(self, event: Event) -> list[Decision]:
        """Take note of an event; what it decides, in order. InvalidInput for one that cannot be; only time goes on."""
        if is_finite(event.t):
            self._now = max(self._now, event.t)
        elif not isinstance(event, events.Arrive):
            raise InvalidInput(f"an event's time must be a finite number of seconds; got {event.t!r}")
        self._decisions = []
        if isinstance(event, events.StepDone):
            self._step_done(event)
        elif isinstance(event, events.Arrive):
            self._arrive(event)
        elif isinstance(event, events.Abort):
            if event.id in self._seqs:
                self._finish(self._seqs[event.id], "abort")
        elif isinstance(event, events.StepFailed):
            self._step_failed(event)
        elif isinstance(event, events.Resize):
            require(event, [("num_pages", is_count(event.num_pages, 1), "an int of at least 1")])
            self._num_pages, self._resized = event.num_pages, True
            self._fit_pool()
        elif isinstance(event, events.Drain):
            self.admission.draining = True
        else:
            raise InvalidInput(f"{type(event).__name__} is not an event")
        while (late := self._deadlines.head()) is not None and late.due_s <= self._now:
            if not late.num_starts:
                self._end(late, events.Expire(late.id))
            else:
                self._finish(late, "deadline", "its total deadline passed before its last token")
        return self._decisions

    def _arrive(self, event: events.Arrive) -> None:
        key = policy.waiting_key(event.t, event.priority, self.config.priority_s) if is_finite(event.t) else 0.0
        try:
            seq = Sequence(event, read_prompt(event), self._num_arrived, key)
            if seq.id in self._seqs:
                raise InvalidInput(f"a request with id {seq.id!r} is not over yet; choose another id")
            refused = self.admission.refusal(seq, self._now, self._num_pages, self.num_waiting)
            self._stats.places_claimed += seq.has_place
            self._stats.places_kept += seq.has_place and refused is None
        except InvalidInput as error:
            refused = "invalid", str(error)
        if refused is not None:
            self._stats.rejected += 1
            return self._decisions.append(Reject(event.id, *refused))
        self._seqs[event.id] = seq
        self._num_arrived += 1
        leader = self._seqs.get(event.after or "")
        if leader is None or leader is seq or len(leader.tokens) > leader.num_prompt:
            self._wait(seq)
        else:
            seq.state = State.BLOCKED
            leader.followers.append(seq)
        if seq.due_s < math.inf:
            self._deadlines.push(seq.due_s, seq)
        self._decisions.append(events.Admit(seq.id, seq.predicted_s if seq.predicted_s < math.inf else None))

    def _landing(self, step: int) -> Flight:
        """The step in flight, whose result came."""
        flight = self._flight
        if flight is None or flight.plan.step != step:
            raise InvalidInput(f"the result of step {step} came, which is not in flight")
        self.admission.changed()
        return flight

    def _step_done(self, event: events.StepDone) -> None:
        flight, tokens = self._landing(event.step), event.tokens
        num_decodes = len(flight.decodes)
        num_samples = num_decodes + (sum(chunk.samples for chunk in flight.plan.chunks) if flight.prompts else 0)
        if len(tokens) != num_samples:
            raise InvalidInput(f"step {event.step} samples {num_samples} tokens; its result has {len(tokens)}")
        strangers = set(event.failed) - {seq.id for seq in flight.seqs} if event.failed else None
        if strangers:
            raise InvalidInput(f"step {event.step} has no sequence {min(strangers)!r} that could fail")
        for seq in flight.seqs if event.failed else ():
            if seq.id in event.failed and seq.state is State.RUNNING:
                self._finish(seq, "error", "its token could not be computed: no logit was a number", sound=False)
        self._flight = None
        took_ms = 1e3 * (self._now - flight.t) if event.ms is None else event.ms
        self.admission.measure(flight, (self._now,), lambda i: took_ms)
        if num_decodes:
            self._decoded(flight, tokens if num_decodes == num_samples else tokens[:num_decodes])
        sampled = iter(tokens[num_decodes:])
        for seq, chunk in zip(flight.prompts, flight.plan.chunks, strict=True) if flight.prompts else ():
            token = next(sampled) if chunk.samples else -1
            if seq.state is State.RUNNING:
                self._chunk_done(seq, chunk, token)
        self._grow()
        self._fit_pool()

    def horizon(self) -> tuple[int, float]:
        """How many steps, from the one in flight on, can be leapt over, and the time before which they must end.

        They only decode: nobody starts, ends or gives way, but for a stop token or an event between. O(sequences).
        """
        flight, decodes, late = self._flight, self._decodes, self._deadlines.head()
        if flight is None or flight.prompts or flight.thinned or self._resized or (self._rows and self._queue.head()):
            return 0, math.inf
        left = min(seq.max_len - len(seq.tokens) for seq in decodes.seqs)
        fits = self._memory.pages.num_available // len(decodes) * self.config.page_size  # in a page more for each
        return min(left - 1, fits), late.due_s if late else math.inf

    def leap(self, ends_s: list[float], took_ms: Callable[[int], float], token: int) -> None:
        """Many steps at once, within the horizon: those that ended at ends_s are done, and the next one is in flight.

        As their StepDones (took_ms: of the first, the second...) and plans would have left it, but that the next plan
        carries all page writes. Every sequence got the token in each; it is nobody's stop token."""
        flight, (steps, until_s) = self._flight, self.horizon()
        if flight is None or not 0 < len(ends_s) <= steps or ends_s[-1] >= until_s or self._decodes.may_stop([token]):
            raise InvalidInput(f"no leap of {len(ends_s)} steps to {ends_s[-1:]}: the horizon is {steps}, {until_s} s")
        self.admission.measure(flight, ends_s, took_ms)
        for due in self._decodes.leap(len(ends_s), token):
            for seq in due:
                self._settle(seq)
            self._grow()
        self.admission.changed()
        plan, flight.t, self._now = flight.plan, ends_s[-1], ends_s[-1]
        plan.step, plan.shape = plan.step + len(ends_s), plan.shape.later(len(ends_s))
        plan.predicted_ms, self._num_steps = self.admission.cost.ms(plan.shape), plan.step + 1

    def _decoded(self, flight: Flight, tokens: Collection[int]) -> None:
        """Each of the flight's decodes got its token."""
        if flight.thinned:
            for seq, token in zip(flight.decodes, tokens, strict=True):
                if seq.state is State.RUNNING:
                    seq.tokens.append(token)
                    self._decodes.context += 1
        else:
            self._decodes.append(tokens)
        if self._decodes.may_stop(tokens):
            for seq, token in zip(flight.decodes, tokens, strict=True):
                if token in seq.stop_token_ids and seq.state is State.RUNNING and len(seq.tokens) >= seq.min_len:
                    self._finish(seq, "stop")
        for seq in flight.decodes if flight.alone else self._decodes.advance():
            if seq.state is State.RUNNING:
                self._settle(seq)

    def _chunk_done(self, seq: Sequence, chunk: Chunk, token: int) -> None:
        """A chunk of seq is computed; token is what it sampled, if it did."""
        seq.computed = chunk.start + chunk.num_tokens
        self._memory.cache_computed(seq)
        if not chunk.samples:
            return
        self._memory.cache_tail(seq)
        if len(seq.tokens) == seq.num_prompt:
            self.admission.first_token(seq, self._now)
        seq.tokens.append(token)
        self._prompts.remove(seq)
        self._decodes.join(seq)
        self._release_followers(seq)
        if token in seq.stop_token_ids and len(seq.tokens) >= seq.min_len:
            self._finish(seq, "stop")
        else:
            self._settle(seq)

    def _settle(self, seq: Sequence) -> None:
        """seq got a token that may have been its last, or the last that its pages hold."""
        if len(seq.tokens) >= seq.max_len:
            self._finish(seq, "length")
        elif len(seq.tokens) > len(seq.pages) * self.config.page_size:
            self._memory.cache_computed(seq)
            self._outgrown.append(seq)
        else:
            self._decodes.schedule(seq, self.config.page_size)

    def _grow(self) -> None:
        """A page for each that outgrew its own; from victims where the pool has none."""
        for seq in self._outgrown:
            while seq.state is State.RUNNING and not self._memory.grow(seq):
                running = self._decodes.seqs + self._prompts
                parity = self.config.attention_parity_tokens
                self._last_victim = policy.choose_victim(running, self._last_victim, parity)
                self._preempt(self._last_victim, may_swap=True)
            if seq.state is State.RUNNING:
                self._decodes.schedule(seq, self.config.page_size)
        self._outgrown = []

    def _step_failed(self, event: events.StepFailed) -> None:
        flight = self._landing(event.step)
        self._flight = None
        if len(flight.seqs) > 1:
            sizes = [1] * len(flight.decodes) + [chunk.num_tokens for chunk in flight.plan.chunks]
            self._suspects.extend(zip(flight.seqs, sizes, strict=True))
        elif flight.seqs[0].state is State.RUNNING:
            self._finish(flight.seqs[0], "error", event.message or "its step failed", sound=False)
        self._fit_pool()

    def _fit_pool(self) -> None:
        """To the size it was given, unless a step is in flight."""
        if self._flight is not None or not self._resized:
            return
        for seq in list(self._seqs.values()):
            problem = policy.never_fits(seq.num_prompt, seq.max_len - seq.num_prompt, self.config, self._num_pages)
            if problem is not None:
                self._finish(seq, "error", f"the pool shrank: {problem}")
            elif max(seq.pages, default=-1) >= self._num_pages:
                self._preempt(seq, may_swap=False)
        self._memory.resize(self._num_pages)
        self._resized = False

    def _preempt(self, seq: Sequence, may_swap: bool) -> None:
        """seq gives up its pages and is queued again, at its old place."""
        seq.peak = max(seq.peak, seq.num_computed)
        seq.preemptions += 1
        self._stats.preemptions += 1
        swap = may_swap and policy.prefers_swap(seq, self.config, self._memory.host.num_free)
        self._stop(seq, self._memory.swap_out if swap else self._memory.release)
        self._wait(seq)
        self._decisions.append(events.Preempt(seq.id))

    def _finish(self, seq: Sequence, reason: str, message: str = "", sound: bool = True) -> None:
        """seq is over; where it is not sound, what its pages hold is forgotten."""
        if seq.state is State.RUNNING:
            self._stop(seq, self._memory.release if sound else self._memory.forget)
        self._end(seq, Finish(seq.id, reason, message))

    def _stop(self, seq: Sequence, give_back: Callable[[Sequence], None]) -> None:
        """seq runs no more; give_back takes its pages."""
        if self._flight is not None:
            self._flight.thinned = True
        give_back(seq)
        if seq.slot >= 0:
            self._decodes.leave(seq)
        else:
            self._prompts.remove(seq)
        heapq.heappush(self._rows, seq.row)
        seq.row = -1

    def _end(self, seq: Sequence, decision: Decision) -> None:
        self._queue.remove(seq)
        self.admission.ended(seq, decision.reason if isinstance(decision, Finish) else "expired", self._stats)
        seq.state = State.DONE
        del self._seqs[seq.id]
        self._memory.drop_host(seq)
        self._release_followers(seq)
        self._decisions.append(decision)

    def _wait(self, seq: Sequence) -> None:
        seq.state = State.WAITING
        self._queue.add(seq, len(seq.tokens) - self._memory.num_cached(seq))

    def _release_followers(self, seq: Sequence) -> None:
        """Its prompt is computed, or never will be."""
        for follower in seq.followers:
            if follower.state is State.BLOCKED:
                self._wait(follower)

    def plan(self, t: float) -> StepPlan | None:
        """The next step; None where nothing can be computed, which changes nothing.

        The runner computes it and its result is applied before the next plan; InvalidInput otherwise.
        """
        if self._flight is not None:
            raise InvalidInput(f"step {self._flight.plan.step} is in flight; apply its StepDone or StepFailed first")
        before, self._now = self._now, max(self._now, t)
        flight = self._flight = (self._suspects and self._plan_suspect()) or self._plan_batch()
        if flight is None:
            self._now = before  # no log knows of this call
            return None
        plan = flight.plan
        plan.step, plan.predicted_ms = self._num_steps, self.admission.cost.ms(plan.shape)
        self.admission.changed()
        self._num_steps += 1
        return plan

    def _plan_suspect(self) -> Flight | None:
        """One sequence of a failed step, alone."""
        while self._suspects:
            seq, num_tokens = self._suspects.popleft()
            if seq.state is State.RUNNING:
                return Flight.of_one(self._memory.take_plan(), seq, num_tokens, self._now)
        return None

    def _plan_batch(self) -> Flight | None:
        """Every decode, then chunks: of prompts begun, then of new ones, as far as the budgets go."""
        decodes, num_decodes, cost = self._decodes, len(self._decodes), self.admission.cost
        shape = StepShape(num_decodes, num_decodes, decodes.context, 0)
        budget = self.config.max_step_tokens - num_decodes
        limit_ms = self.admission.limit_ms if num_decodes and (self._prompts or self._queue.num) else math.inf
        prompts: list[Sequence] = []
        chunks: list[Chunk] = []
        begun, held = iter(self._prompts.copy()), list[Sequence]()
        # A page's worth of tokens goes into any step, or a target that cannot be met would stop every prompt.
        while budget > 0 and (not chunks or cost.ms(shape.plus(0, 1)) <= limit_ms):
            seq = next(begun, None)
            if seq is not None:
                self._memory.goes_on(seq)
            elif (seq := self.admission.start(self._now, held)) is None:
                break
            num_left = min(budget, len(seq.tokens) - seq.computed)
            most = cost.most_within(limit_ms, num_left, partial(shape.plus, seq.computed))
            chunk = next_chunk(seq, min(budget, max(most, 1 if chunks else self.config.page_size)))
            prompts.append(seq)
            chunks.append(chunk)
            budget -= chunk.num_tokens
            shape = shape.plus(chunk.start, chunk.num_tokens)
        for seq in held:
            self._wait(seq)
        if not chunks and not num_decodes:
            return None
        decodes.lent = True
        plan = self._memory.take_plan()
        plan.decode_rows, plan.decode_ids, plan.chunks, plan.shape = decodes.rows, decodes.ids, chunks, shape
        if not chunks and self.config.graph_buckets and num_decodes <= self.config.graph_buckets[-1]:
            plan.graph_bucket = self.config.graph_buckets[bisect_left(self.config.graph_buckets, num_decodes)]
        return Flight(plan, decodes.seqs, prompts, self._now)
