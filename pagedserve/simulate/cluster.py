# SPDX-License-Identifier: Apache-2.0
"""Replicas behind a load balancer, in virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.watched import OnEvent
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision, Expire, Finish, Reject
from pagedserve.simulate.autoscaling import Autoscaler, Load, Trend
from pagedserve.simulate.balancing import Balancer, LeastBacklog
from pagedserve.simulate.cost import StepLaw
from pagedserve.simulate.replica import Replica, Visit
from pagedserve.simulate.results import SERVED, Results, Sample
from pagedserve.simulate.workload import Request

COMES, LOOK, STEP_END = range(3)  # what goes first of what happens at the same time
Act = Callable[[float], None]
Progress = Callable[[float, int], None]  # virtual seconds, requests that came so far


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the number of replicas follows the load.

    Attributes:
        start_s: from asking for a replica to its first request.
        replica_tokens_per_s: what one does while busy, as measured.
        every_s: between two looks.
        window_s: of the arrival rate and its climb.
    """

    autoscaler: Autoscaler
    start_s: float
    replica_tokens_per_s: float
    every_s: float = 5.0
    window_s: float = 30.0


class Cluster:
    """Runs one workload.

    Args:
        config, cost: of each replica.
        num_replicas: at the start, ready.
        promises: as Replica.
        returns: how often somebody who is sent away with a Retry-After comes back after it.
        scaling: None keeps the number of replicas.
        sample_s: between two samples of the timeline; 0: none.
        progress: called now and then.
        on_event: of the first replica's scheduler, which then takes its steps one by one.

    Raises:
        InvalidInput: an argument cannot be.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cost: StepLaw,
        *,
        num_replicas: int = 1,
        balancer: Balancer | None = None,
        promises: bool = True,
        returns: int = 0,
        scaling: Scaling | None = None,
        sample_s: float = 0.0,
        progress: Progress | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        if num_replicas < 1 or returns < 0 or not sample_s >= 0:
            raise InvalidInput(f"num_replicas {num_replicas} >= 1, returns {returns} >= 0 and sample_s {sample_s} >= 0")
        self.results = Results()
        self._config, self._cost, self._promises = config, cost, promises
        self._balancer = balancer or LeastBacklog()
        self._returns, self._scaling = returns, scaling
        self._sample_s, self._progress = sample_s, progress
        self._heap: list[tuple[float, int, int, int, Act]] = []
        self._num_pushed = 0
        self._num_open = 0  # requests at a replica, or on their way back to one
        self._more = True  # requests are yet to come
        self._trend = Trend(scaling.window_s if scaling else 1.0)
        self._arrived_tokens = 0
        self._starting = 0
        self._paid_since: dict[int, float] = {}  # replica -> when it was asked for
        self._ready: list[Replica] = []  # takes requests
        self._leaving: list[Replica] = []  # finishes what it has
        self._num_made = 0
        self._on_event = on_event
        for _ in range(num_replicas):
            self._paid_since[self._num_made] = 0.0
            self._make_ready(0.0)

    def run(self, requests: Iterable[Request]) -> Results:
        """All requests, in rising order of arrival, to their end."""
        if self._sample_s:
            self._push(0.0, self._sample)
        if self._scaling is not None:
            self._trend.observe(0.0, 0.0)
            self._push(self._scaling.every_s, self._scale)
        t, heap = 0.0, self._heap
        for number, request in enumerate(requests):
            while heap and heap[0][0] < request.arrival_s:
                t, *_, act = heapq.heappop(heap)
                act(t)
            t = request.arrival_s
            if self._progress is not None and number % 1024 == 0:
                self._progress(t, number)
            self._num_open += 1
            self._arrived_tokens += len(request.prompt) + request.asked_tokens
            self._route(Visit(number, request, 0, t), t)
        self._more = False
        while self._num_open:
            t, *_, act = heapq.heappop(heap)
            act(t)
        self._close(t)
        return self.results

    def _push(self, t: float, act: Act, order: int = LOOK, number: int = 0) -> None:
        self._num_pushed += 1
        heapq.heappush(self._heap, (t, order, number, self._num_pushed, act))

    def _route(self, visit: Visit, t: float) -> None:
        # Who comes back goes where a place is kept. While nobody serves yet, all wait at the one that will be first.
        replica = visit.replica
        if replica is None or replica not in self._ready:
            replica = self._ready[self._balancer.choose(self._ready, visit.request) if len(self._ready) > 1 else 0]
        end_s = replica.end_s
        replica.submit(visit, t)
        if not replica.busy:
            self._begin(replica, t)
        elif replica.end_s < end_s:
            self._await(replica)

    def _begin(self, replica: Replica, t: float) -> None:
        replica.begin(t)
        if replica.busy:
            self._await(replica)
        elif replica in self._leaving:
            self._retire(replica, t)

    def _await(self, replica: Replica) -> None:
        # Of steps that end together the first replica's is first, whichever began sooner: a leap begins long before.
        self._push(replica.end_s, partial(self._end, replica), STEP_END, replica.number)

    def _end(self, replica: Replica, t: float) -> None:
        if t == replica.end_s:  # else it was brought forward
            replica.end(t)
            self._begin(replica, t)

    def _ended(self, visit: Visit, decision: Decision, t: float) -> None:
        request, retry_after_s, output_tokens = visit.request, None, 0
        if isinstance(decision, Finish):
            end = decision.reason
            output_tokens = request.output_tokens if end in SERVED else 0
        elif isinstance(decision, Reject):
            end, retry_after_s = decision.reason, decision.retry_after_s
        else:
            end = "expired"
            retry_after_s = decision.retry_after_s if isinstance(decision, Expire) else None
        self.results.add(
            visit.number,
            request,
            end,
            attempt=visit.attempt,
            arrival_s=visit.arrival_s,
            first_s=visit.first_s,
            last_s=t if end in SERVED else None,
            output_tokens=output_tokens,
            retry_after_s=retry_after_s,
        )
        if retry_after_s is not None and visit.attempt < self._returns:
            again = Visit(visit.number, request, visit.attempt + 1, t + retry_after_s, visit.replica)
            self._push(again.arrival_s, partial(self._route, again), COMES)
        else:
            self._num_open -= 1

    def _sample(self, t: float) -> None:
        replicas = self._ready + self._leaving
        waiting = sum(replica.num_waiting for replica in replicas)
        running = sum(replica.scheduler.num_running for replica in replicas)
        backlog = sum(replica.backlog_tokens for replica in replicas)
        self.results.samples.append(Sample(t, waiting, running, len(self._ready), self._starting, backlog))
        if self._more or self._num_open:
            self._push(t + self._sample_s, self._sample)

    def _scale(self, t: float) -> None:
        scaling = self._scaling
        assert scaling is not None
        self._trend.observe(t, self._arrived_tokens)
        self._arrived_tokens = 0
        load = Load(
            t=t,
            ready=len(self._ready),
            starting=self._starting,
            backlog_tokens=sum(replica.backlog_tokens for replica in self._ready),
            arriving_tokens_per_s=self._trend.rate,
            trend_tokens_per_s2=self._trend.climb,
            replica_tokens_per_s=scaling.replica_tokens_per_s,
            start_s=scaling.start_s,
        )
        change = scaling.autoscaler.desired(load) - load.ready - load.starting
        for _ in range(change):
            self._starting += 1
            self._paid_since[self._num_made + self._starting - 1] = t
            self._push(t + scaling.start_s, self._started)
        for _ in range(min(-change, len(self._ready) - 1)):
            replica = self._ready.pop()
            self._leaving.append(replica)
            if not replica.busy:
                self._retire(replica, t)
        if self._more or self._num_open:
            self._push(t + scaling.every_s, self._scale)

    def _started(self, t: float) -> None:
        self._starting -= 1
        self._make_ready(t)

    def _make_ready(self, t: float) -> None:
        on_event = self._on_event if self._num_made == 0 else None
        replica = Replica(
            self._num_made, self._config, self._cost, self._ended, promises=self._promises, on_event=on_event
        )
        self._num_made += 1
        self._ready.append(replica)

    def _retire(self, replica: Replica, t: float) -> None:
        self._leaving.remove(replica)
        self._pay(replica, t)

    def _pay(self, replica: Replica, t: float) -> None:
        stats, results = replica.scheduler.stats(), self.results
        results.replica_s += t - self._paid_since.pop(replica.number)
        results.steps += replica.steps
        results.preemptions += stats.preemptions
        results.recomputed_tokens += stats.recomputed_tokens
        results.prefix_hit_tokens += stats.prefix_hit_tokens
        results.places_claimed += stats.places_claimed
        results.places_kept += stats.places_kept

    def _close(self, t: float) -> None:
        self.results.end_s = t
        for replica in self._ready + self._leaving:
            self._pay(replica, t)
        self.results.replica_s += math.fsum(t - since for since in self._paid_since.values() if since < t)


def simulate(
    config: SchedulerConfig, cost: StepLaw, requests: Iterable[Request], *, promises: bool = True, returns: int = 0
) -> Results:
    """One replica, one workload."""
    return Cluster(config, cost, promises=promises, returns=returns).run(requests)
