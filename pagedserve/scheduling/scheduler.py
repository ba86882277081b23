# SPDX-License-Identifier: Apache-2.0
"""Events in, decisions and step plans out: continuous batching over pages."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import abc
from dataclasses import dataclass, field

from pagedserve.errors import InvalidInput
from pagedserve.scheduling import policy
from pagedserve.scheduling.batch import DecodeBatch, WaitingQueue
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import (
    Abort,
    Admit,
    Arrive,
    Chunk,
    Decision,
    Event,
    Expire,
    Finish,
    Planned,
    Preempt,
    Record,
    Reject,
    Resize,
    StepDone,
    StepFailed,
    StepPlan,
)
from pagedserve.scheduling.memory import Memory
from pagedserve.scheduling.request import Sequence, State, invalid_arrival, is_finite, read_prompt

OnEvent = abc.Callable[[Record, list[Decision]], None]


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot. Requests: waiting (blocked ones included), running. Pages: used by sequences, cached for whoever
    comes, free; used + cached + free = total. The rest counts from the start; prefix_* over first starts only."""

    waiting: int
    running: int
    pages_total: int
    pages_used: int
    pages_cached: int
    pages_free: int
    host_pages_used: int
    prefix_queries: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    pages_evicted: int
    preemptions: int
    swaps: int
    recomputed_tokens: int
    steps: int


@dataclass(slots=True)
class _Flight:
    """The step that is out."""

    plan: StepPlan
    seqs: list[Sequence]  # of plan.decode_rows
    appends: list[abc.Callable[[int], None]]
    chunks: list[tuple[Sequence, Chunk]] = field(default_factory=list)
    alone: bool = False  # one suspect of a failed step
    thinned: bool = False  # a sequence ended since it was planned


class Scheduler:
    """Who computes what in the next step. Deterministic: the same calls give the same results, on any machine.

    Use: `apply` every event as it happens; when no step is in flight, `plan` one, compute it, and apply StepDone or
    StepFailed. Not safe for use from several threads at once.

    Decode goes first: every running sequence that decodes is in every step, and chunks of prompts fill what the token
    budget leaves. A prompt starts when pages for all of it are there; a sequence that outgrows its pages takes them
    from a victim (policy.choose_victim), which is queued again where it stood and loses no token.

    Cost: apply(StepDone) and plan take O(1) Python steps, one append per sequence that decodes, and work for the
    sequences that start, end or fill a page.

    Args:
        config: limits and prices.
        on_event: called after each event with its decisions, and after each plan with a Planned; for logs.
    """

    def __init__(self, config: SchedulerConfig, on_event: OnEvent | None = None) -> None:
        self.config = config
        self._on_event = on_event
        self._memory = Memory(config)
        self._seqs: dict[str, Sequence] = {}  # every request that is not over
        self._waiting = WaitingQueue()
        self._decodes = DecodeBatch()
        self._prompts: list[Sequence] = []  # running, but no token sampled yet; in the order of their start
        self._rows = list(range(config.max_seqs))  # free ones; a heap
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._flight: _Flight | None = None
        self._suspects: list[tuple[Sequence, int]] = []  # of a failed step, to be tried alone; tokens tried
        self._resize_to: int | None = None
        self._last_victim: Sequence | None = None
        self._draining = False
        self._now = -math.inf
        self._num_arrived = 0
        self._num_steps = 0
        self._num_preemptions = 0

    # What a caller asks

    def sequence(self, id: str) -> Sequence:
        """The request's state; InvalidInput where it is over or never came."""
        seq = self._seqs.get(id)
        if seq is None:
            raise InvalidInput(f"no request {id!r} is waiting or running")
        return seq

    @property
    def num_unfinished(self) -> int:
        """Requests waiting or running."""
        return len(self._seqs)

    @property
    def num_running(self) -> int:
        """Requests that have a row."""
        return len(self._decodes) + len(self._prompts)

    def stats(self) -> SchedulerStats:
        """Counts, O(1)."""
        memory = self._memory
        pages = memory.pages
        return SchedulerStats(
            waiting=len(self._seqs) - self.num_running,
            running=self.num_running,
            pages_total=pages.num_pages,
            pages_used=pages.num_pages - pages.num_available,
            pages_cached=pages.num_idle,
            pages_free=pages.num_free,
            host_pages_used=self.config.num_host_pages - memory.num_free_host_pages,
            prefix_queries=memory.num_queries,
            prefix_query_tokens=memory.num_query_tokens,
            prefix_hit_tokens=memory.num_hit_tokens,
            pages_evicted=memory.cache.num_evicted,
            preemptions=self._num_preemptions,
            swaps=memory.num_swaps,
            recomputed_tokens=memory.num_recomputed_tokens,
            steps=self._num_steps,
        )

    def audit(self) -> None:
        """Raise InvalidInput where a page is leaked, lost or doubly held. O(pages); for tests and shutdown."""
        self._memory.audit(self._seqs.values())

    # What happens

    def apply(self, event: Event) -> list[Decision]:
        """Take note of an event; what it decides, in order. InvalidInput for one that cannot be, with no effect."""
        out: list[Decision] = []
        if isinstance(event, Arrive):
            self._arrive(event, out)
        else:
            self._tell_time(event.t)
            if isinstance(event, StepDone):
                self._step_done(event, out)
            elif isinstance(event, Abort):
                seq = self._seqs.get(event.id)
                if seq is not None:
                    self._finish(seq, "abort", out)
            elif isinstance(event, StepFailed):
                self._step_failed(event, out)
            elif isinstance(event, Resize):
                self._resize(event.num_pages, out)
            else:
                self._draining = True
        if self._deadlines and self._deadlines[0][0] <= self._now:
            self._expire(out)
        if self._on_event is not None:
            self._on_event(event, out)
        return out

    def _tell_time(self, t: float) -> None:
        if not math.isfinite(t):
            raise InvalidInput(f"an event's time must be finite; got {t}")
        if t > self._now:
            self._now = t

    def _arrive(self, event: Arrive, out: list[Decision]) -> None:
        if is_finite(event.t):
            self._tell_time(event.t)
        refused = self._refusal(event)
        if isinstance(refused, Reject):
            out.append(refused)
            return
        key = policy.waiting_key(event.t, event.priority, self.config.priority_s)
        seq = Sequence(event, refused, self._num_arrived, key)
        self._num_arrived += 1
        self._seqs[seq.id] = seq
        leader = None if event.after is None else self._seqs.get(event.after)
        if leader is None or leader is seq or leader.num_output:
            self._waiting.push(seq)
        else:
            seq.state = State.BLOCKED
            leader.followers.append(seq)
        due = min(seq.ttft_due_s, seq.due_s)
        if due < math.inf:
            heapq.heappush(self._deadlines, (due, seq.order, seq))
            if len(self._deadlines) > 64 + 2 * len(self._seqs):
                self._deadlines = [entry for entry in self._deadlines if entry[2].state is not State.DONE]
                heapq.heapify(self._deadlines)
        out.append(Admit(seq.id))

    def _refusal(self, event: Arrive) -> Reject | list[int]:
        """Why an arrival is refused; else its prompt."""
        prompt = read_prompt(event)
        problem = invalid_arrival(event, prompt)
        if problem is not None or prompt is None:
            return Reject(event.id, "invalid", problem or "")
        if event.id in self._seqs:
            return Reject(event.id, "invalid", f"a request with id {event.id!r} is not over yet; choose another id")
        if self._draining:
            return Reject(event.id, "draining", "the engine finishes what it has and takes no more requests")
        num_pages = self._memory.pages.num_pages if self._resize_to is None else self._resize_to
        problem = policy.never_fits(len(prompt), event.max_tokens, self.config, num_pages)
        if problem is not None:
            return Reject(event.id, "never_fits", problem)
        limit = self.config.max_queue
        if limit is not None and len(self._seqs) - self.num_running >= limit:
            return Reject(event.id, "queue_full", f"{limit} requests are waiting, which is max_queue; come back later")
        return prompt

    def _land(self, step: int) -> _Flight:
        """The step is over."""
        flight = self._flight
        if flight is None or flight.plan.step != step:
            there = "no step is" if flight is None else f"step {flight.plan.step} is"
            raise InvalidInput(f"the result of step {step} came while {there} in flight")
        return flight

    def _step_done(self, event: StepDone, out: list[Decision]) -> None:
        flight = self._land(event.step)
        tokens, num_decodes = event.tokens, len(flight.seqs)
        num_samples = num_decodes + sum(chunk.samples for _, chunk in flight.chunks)
        if len(tokens) != num_samples:
            raise InvalidInput(f"step {event.step} samples {num_samples} tokens; its result has {len(tokens)}")
        failed = self._failed(event, flight) if event.failed else []
        self._flight = None
        for seq in failed:
            self._fail(seq, "its token could not be computed: no logit was a number", out)
            flight.thinned = True

        outgrown: list[Sequence] = []
        if num_decodes:
            self._decoded(flight, tokens if num_decodes == num_samples else tokens[:num_decodes], outgrown, out)
        if flight.chunks:
            sampled = iter(tokens[num_decodes:])
            for seq, chunk in flight.chunks:
                token = next(sampled) if chunk.samples else -1
                if seq.state is State.RUNNING:
                    self._chunk_done(seq, chunk, token, outgrown, out)
        self._grow(outgrown, out)
        if self._resize_to is not None:
            self._resize(self._resize_to, out)

    def _failed(self, event: StepDone, flight: _Flight) -> list[Sequence]:
        """The sequences whose token failed, but for those already over."""
        members = {seq.id: seq for seq in flight.seqs + [seq for seq, _ in flight.chunks]}
        strangers = [id for id in event.failed if id not in members]
        if strangers:
            raise InvalidInput(f"step {event.step} has no sequence {strangers[0]!r} that could fail")
        return [members[id] for id in dict.fromkeys(event.failed) if members[id].state is State.RUNNING]

    def _decoded(
        self, flight: _Flight, tokens: abc.Sequence[int], outgrown: list[Sequence], out: list[Decision]
    ) -> None:
        """Each sequence of the flight's decodes got its token."""
        if not flight.thinned:
            for append, token in zip(flight.appends, tokens, strict=False):
                append(token)
        else:
            for seq, token in zip(flight.seqs, tokens, strict=False):
                if seq.state is State.RUNNING:
                    seq.tokens.append(token)
        if not self._decodes.stop_counts.keys().isdisjoint(tokens):
            for seq, token in zip(flight.seqs, tokens, strict=False):
                if token in seq.stop_token_ids and seq.state is State.RUNNING and len(seq.tokens) >= seq.min_len:
                    self._finish(seq, "stop", out)
        for seq in flight.seqs if flight.alone else self._decodes.advance():
            if seq.state is State.RUNNING:
                self._settle(seq, outgrown, out)

    def _chunk_done(
        self, seq: Sequence, chunk: Chunk, token: int, outgrown: list[Sequence], out: list[Decision]
    ) -> None:
        """A chunk of seq is computed; token is what it sampled, if it did."""
        seq.computed = chunk.start + chunk.num_tokens
        self._memory.cache_computed(seq)
        if not chunk.samples:
            return
        self._memory.cache_tail(seq)
        seq.tokens.append(token)
        self._prompts.remove(seq)
        self._decodes.join(seq)
        self._release_followers(seq)
        if token in seq.stop_token_ids and len(seq.tokens) >= seq.min_len:
            self._finish(seq, "stop", out)
        else:
            self._settle(seq, outgrown, out)

    def _settle(self, seq: Sequence, outgrown: list[Sequence], out: list[Decision]) -> None:
        """seq got a token that may have been its last, or the last that its pages hold."""
        size = self.config.page_size
        seq.due_tick = 0
        if len(seq.tokens) >= seq.max_len:
            self._finish(seq, "length", out)
        elif len(seq.tokens) > len(seq.pages) * size:
            self._memory.cache_computed(seq)
            outgrown.append(seq)
        else:
            self._decodes.schedule(seq, size)

    def _grow(self, outgrown: list[Sequence], out: list[Decision]) -> None:
        """A page for each; from victims where the pool has none."""
        for seq in outgrown:
            while seq.state is State.RUNNING:
                if self._memory.grow(seq):
                    self._decodes.schedule(seq, self.config.page_size)
                    break
                running = self._decodes.seqs + self._prompts
                parity = self.config.attention_parity_tokens
                victim = policy.choose_victim(running, self._last_victim, parity)
                self._last_victim = victim
                self._preempt(victim, out, swap=True)

    def _step_failed(self, event: StepFailed, out: list[Decision]) -> None:
        flight = self._land(event.step)
        self._flight = None
        members = [(seq, 1) for seq in flight.seqs] + [(seq, chunk.num_tokens) for seq, chunk in flight.chunks]
        if len(members) == 1:
            if members[0][0].state is State.RUNNING:
                self._fail(members[0][0], event.message or "its step failed", out)
        else:
            self._suspects.extend(members)
        if self._resize_to is not None:
            self._resize(self._resize_to, out)

    def _resize(self, num_pages: int, out: list[Decision]) -> None:
        if type(num_pages) is not int or num_pages < 1:
            raise InvalidInput(f"a pool has at least 1 page; Resize got {num_pages!r}")
        if self._flight is not None:
            self._resize_to = num_pages
            return
        self._resize_to = None
        for seq in list(self._seqs.values()):
            problem = policy.never_fits(seq.num_prompt, seq.max_len - seq.num_prompt, self.config, num_pages)
            if problem is not None:
                self._finish(seq, "error", out, f"the pool shrank: {problem}")
            elif seq.pages and max(seq.pages) >= num_pages:
                self._preempt(seq, out, swap=False)
        self._memory.resize(num_pages)

    def _expire(self, out: list[Decision]) -> None:
        """Drop whoever has not started and is too late."""
        while self._deadlines and self._deadlines[0][0] <= self._now:
            seq = heapq.heappop(self._deadlines)[2]
            if seq.state in (State.BLOCKED, State.WAITING) and seq.preemptions == 0:
                self._end(seq)
                out.append(Expire(seq.id))

    # How sequences end and give way

    def _preempt(self, seq: Sequence, out: list[Decision], swap: bool) -> None:
        """seq gives up its pages and is queued again, at its old place."""
        swap = swap and policy.prefers_swap(seq, self.config, self._memory.num_free_host_pages)
        self._stop_running(seq)
        seq.peak = max(seq.peak, seq.computed)
        if swap:
            self._memory.swap_out(seq)
        else:
            self._memory.release(seq)
            seq.computed = 0
        self._free_row(seq)
        seq.preemptions += 1
        self._num_preemptions += 1
        self._waiting.push(seq)
        out.append(Preempt(seq.id))

    def _finish(self, seq: Sequence, reason: str, out: list[Decision], message: str = "") -> None:
        if seq.state is State.RUNNING:
            self._stop_running(seq)
            self._memory.release(seq)
            self._free_row(seq)
        self._end(seq)
        out.append(Finish(seq.id, reason, message))

    def _fail(self, seq: Sequence, message: str, out: list[Decision]) -> None:
        """A running sequence could not be computed; what its pages hold is forgotten."""
        sampled = seq.slot >= 0
        self._stop_running(seq)
        self._memory.forget(seq, sampled)
        self._free_row(seq)
        self._end(seq)
        out.append(Finish(seq.id, "error", message))

    def _stop_running(self, seq: Sequence) -> None:
        if self._flight is not None:
            self._flight.thinned = True
        if seq.slot >= 0:
            self._decodes.leave(seq)
        else:
            self._prompts.remove(seq)

    def _free_row(self, seq: Sequence) -> None:
        heapq.heappush(self._rows, seq.row)
        seq.row = -1

    def _end(self, seq: Sequence) -> None:
        """seq is over."""
        seq.state = State.DONE
        del self._seqs[seq.id]
        self._memory.drop_host(seq)
        self._release_followers(seq)

    def _release_followers(self, seq: Sequence) -> None:
        """Its prompt is computed, or never will be."""
        for follower in seq.followers:
            if follower.state is State.BLOCKED:
                self._waiting.push(follower)
        seq.followers = []

    # What to compute next

    def plan(self, t: float) -> StepPlan | None:
        """The next step; None where nothing can be computed, which changes nothing.

        The runner computes it and its result is applied before the next plan; InvalidInput otherwise.
        """
        if self._flight is not None:
            raise InvalidInput(f"step {self._flight.plan.step} is in flight; apply its StepDone or StepFailed first")
        self._tell_time(t)
        flight = self._plan_suspect() or self._plan_batch()
        if flight is None:
            return None
        self._num_steps += 1
        self._flight = flight
        plan = flight.plan
        self._memory.hand_over(plan)
        if self._on_event is not None:
            self._on_event(Planned(t, plan.step, plan.num_tokens), [])
        return plan

    def _plan_suspect(self) -> _Flight | None:
        """One sequence of a failed step, alone."""
        while self._suspects:
            seq, num_tokens = self._suspects.pop(0)
            if seq.state is not State.RUNNING:
                continue
            plan = StepPlan(self._num_steps)
            if seq.slot >= 0:
                plan.decode_rows, plan.decode_ids = [seq.row], [seq.id]
                return _Flight(plan, [seq], [seq.tokens.append], alone=True)
            chunk = self._chunk(seq, num_tokens)
            plan.chunks.append(chunk)
            return _Flight(plan, [], [], [(seq, chunk)], alone=True)
        return None

    def _plan_batch(self) -> _Flight | None:
        """Every decode, then chunks: of prompts begun, then of new ones, as far as the budget goes."""
        decodes = self._decodes
        chunks: list[tuple[Sequence, Chunk]] = []
        budget = policy.step_budget(self.config, len(decodes))
        for seq in self._prompts:
            if budget <= 0:
                break
            chunks.append((seq, self._chunk(seq, budget)))
            budget -= chunks[-1][1].num_tokens
        while budget > 0:
            started = self._start()
            if started is None:
                break
            chunks.append((started, self._chunk(started, budget)))
            budget -= chunks[-1][1].num_tokens
        if not chunks and not len(decodes):
            return None
        decodes.lend()
        plan = StepPlan(self._num_steps, decodes.rows, decodes.ids, [chunk for _, chunk in chunks])
        if not chunks:
            buckets = self.config.graph_buckets
            place = bisect_left(buckets, len(decodes))
            plan.graph_bucket = buckets[place] if place < len(buckets) else 0
        return _Flight(plan, decodes.seqs, decodes.appends, chunks)

    def _chunk(self, seq: Sequence, budget: int) -> Chunk:
        num_left = len(seq.tokens) - seq.computed
        num_tokens = policy.chunk_tokens(num_left, budget)
        return Chunk(seq.id, seq.row, seq.computed, num_tokens, num_tokens == num_left)

    def _start(self) -> Sequence | None:
        """Give the head of the queue a row and pages; None where there is no head, row or place."""
        seq = self._waiting.head()
        if seq is None or not self._rows:
            return None
        num_running = self.num_running
        pages = self._memory.pages
        if num_running and pages.num_available < seq.needs_pages:
            return None
        reserve = policy.watermark_pages(self.config, pages.num_pages, num_running)
        if not self._memory.admit(seq, self._rows[0], reserve):
            return None
        seq.needs_pages = 0
        seq.row = heapq.heappop(self._rows)
        seq.state = State.RUNNING
        self._waiting.pop()
        self._prompts.append(seq)
        return seq
