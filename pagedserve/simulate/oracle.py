# SPDX-License-Identifier: Apache-2.0
"""The best that admission could have done, by somebody who knew how fast the queue would drain.

Two such oracles, neither of which any scheduler beats by much, and of which the better counts:

    hindsight   admits while fewer than n wait, with the n that was best for this very workload
    drain       a queue of one server that does a token in seconds_per_token, as the saturated engine did on average;
                admits exactly those whose first token will be on time in it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.cluster import simulate
from pagedserve.simulate.cost import StepLaw
from pagedserve.simulate.results import Summary
from pagedserve.simulate.workload import Request

Workload = Callable[[], Iterable[Request]]
SATURATED = 1500  # requests at once that the drain rate is measured with
BOUNDS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares of all arrivals that were on time.

    Attributes:
        promised, unbounded: what the scheduler made of requests with their promises, and without.
        hindsight, bound: the best queue bound's share, and that bound.
        drain: the share of the drain oracle.
    """

    promised: Summary
    unbounded: Summary
    hindsight: float
    bound: int
    drain: float

    @property
    def oracle(self) -> float:
        """The better of the two."""
        return max(self.hindsight, self.drain)


def compare(
    config: SchedulerConfig, cost: StepLaw, workload: Workload, *, bounds: Sequence[int] = BOUNDS
) -> Comparison:
    """Run a workload as it is, unbounded, and under each bound. All requests carry a TTFT promise."""
    promised = simulate(config, cost, workload()).summary()
    unbounded = simulate(config, cost, workload(), promises=False).summary()
    shares = {
        bound: simulate(replace(config, max_queue=bound), cost, workload(), promises=False).summary().kept_share
        for bound in bounds
    }
    best = max(shares, key=lambda bound: shares[bound])
    crowd = (replace(request, arrival_s=0.0) for request in islice(workload(), SATURATED))
    saturated = simulate(config, cost, crowd, promises=False)
    tokens = sum(saturated.prompt_tokens) + sum(saturated.output_tokens)
    drain = drain_share(workload(), saturated.end_s / tokens)
    return Comparison(promised, unbounded, shares[best], best, drain)


def drain_share(requests: Iterable[Request], seconds_per_token: float) -> float:
    """Of all arrivals, those that a server of this rate takes because their first token will be on time."""
    free_s, arrivals, taken = 0.0, 0, 0
    for request in requests:
        arrivals += 1
        start_s = max(free_s, request.arrival_s)
        first_s = start_s + len(request.prompt) * seconds_per_token
        if request.slo.ttft_s is None or first_s - request.arrival_s <= request.slo.ttft_s:
            taken += 1
            free_s = first_s + request.output_tokens * seconds_per_token
    return taken / arrivals if arrivals else 1.0
