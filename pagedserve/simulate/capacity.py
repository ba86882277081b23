# SPDX-License-Identifier: Apache-2.0
"""What a crowd needs: the rate that one replica serves in time, replicas, a spike, a climb, and what it costs.

Every answer is a simulation of the scheduler on a machine's step cost. Large crowds are simulated in proportion: on at
most MOST_REPLICAS replicas, each with its share of the requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.autoscaling import Autoscaler, Policy, predictive, seconds_to_drain
from pagedserve.simulate.cluster import Cluster, Scaling
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.hardware import Machine
from pagedserve.simulate.results import Results
from pagedserve.simulate.workload import (
    RateProfile,
    Request,
    Slo,
    fixed,
    lognormal,
    ramp,
    requests,
    spike,
    steady,
)

MOST_REPLICAS = 2
ON_TIME = 0.99  # share of all arrivals that a capacity keeps its promises to
STEADY_S, STEADY_REQUESTS = 40.0, 1000  # of arrivals that a rate is tried with, at least: so 99 % is known to 0.3
ALONE = 1e-4  # of the rate that no replica reaches: one user at a time
SPIKE_S = 20.0
REACH_S = 2.0  # of backlog that autoscaling lets stand

POLICIES: dict[str, Policy] = {"predictive": predictive(REACH_S), "seconds to drain": seconds_to_drain(REACH_S)}

Told = Callable[[str], None]
Question = tuple[str, dict[str, Any]]  # a method of Planner that gives a Scenario, and its arguments


@dataclass(frozen=True, slots=True)
class Traffic:
    """What each user asks for: lengths are lognormal, in tokens.

    Attributes:
        users: how many there are.
        every_s: each asks once in so many seconds, on average.
    """

    users: int
    every_s: float
    slo: Slo
    prompt_mean: float = 1155.0
    prompt_sigma: float = 0.99
    output_mean: float = 211.0
    output_sigma: float = 0.86
    seed: int = 0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.users / self.every_s

    def stream(self, profile: RateProfile, most: int) -> Iterator[Request]:
        """Requests that come by a profile, none with a prompt or an output above `most` tokens."""
        prompt = (
            lognormal(self.prompt_mean, self.prompt_sigma, most) if self.prompt_sigma else fixed(int(self.prompt_mean))
        )
        output = (
            lognormal(self.output_mean, self.output_sigma, most) if self.output_sigma else fixed(int(self.output_mean))
        )
        return requests(profile.arrivals(self.seed), prompt, output, slo=self.slo, seed=self.seed + 1)


def step_tokens(cost: StepCurve, slo: Slo, least: int = 256, most: int = 8192) -> int:
    """Tokens of a step that takes, without context, at most 70 % of the TPOT target; a multiple of 128."""
    if slo.tpot_s is None:
        return 2048
    tokens = most
    while tokens > least and cost.ms(StepShape(tokens, 1, 0, 0)) > 700 * slo.tpot_s:
        tokens -= 128
    return tokens


def replica_config(machine: Machine, slo: Slo, max_seqs: int = 256) -> SchedulerConfig:
    """A scheduler for a machine under a promise."""
    return SchedulerConfig(
        num_pages=machine.num_pages,
        page_size=machine.page_size,
        max_seqs=max_seqs,
        max_step_tokens=max(step_tokens(machine.cost, slo), max_seqs),
        max_model_len=min(machine.context_length, machine.num_pages * machine.page_size),
        prefix_cache=False,  # the users of a plan share no prefix
        prices=machine.cost.prices(),
    )


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulation, of so many replicas at its start."""

    name: str
    replicas: int
    results: Results
    profile: RateProfile

    @property
    def drained_s(self) -> float:
        """From the end of arrivals to the last answer."""
        return max(0.0, self.results.end_s - self.profile.duration_s)


class Planner:
    """Answers for one machine and one traffic.

    Args:
        told: called with a line before each simulation.

    Raises:
        InvalidInput: no load at all is served in time, or prompts or outputs are longer than the machine holds.
    """

    def __init__(self, machine: Machine, traffic: Traffic, told: Told = lambda line: None) -> None:
        self.machine, self.traffic = machine, traffic
        self.config = replica_config(machine, traffic.slo)
        self.told = told
        self._most = self.config.max_model_len // 2
        for name, mean in (("prompt", traffic.prompt_mean), ("output", traffic.output_mean)):
            if mean > self._most:
                raise InvalidInput(
                    f"the mean {name} is {mean:,.0f} tokens; on {machine.name} a request holds "
                    f"{self.config.max_model_len:,}, and {name}s are simulated up to half of that, {self._most:,}"
                )

    def run(
        self, profile: RateProfile, replicas: int, *, promises: bool = True, scaling: Scaling | None = None
    ) -> Results:
        """One workload on so many replicas."""
        cluster = Cluster(
            self.config,
            self.machine.law,
            num_replicas=replicas,
            promises=promises,
            scaling=scaling,
            sample_s=max(0.25, profile.duration_s / 400),
        )
        return cluster.run(self.traffic.stream(profile, self._most))

    def replica_rate(self) -> float:
        """Requests a second of which one replica serves ON_TIME in time, to 3 %."""
        self.told("one replica, one user at a time")
        low, high = 0.0, self._ceiling()
        least = ALONE * high
        alone = self._kept(least)
        if alone < ON_TIME:
            raise self._too_much(alone, "one user at a time")
        while high - low > 0.03 * high:
            rate = (low + high) / 2
            self.told(f"one replica at {rate:.3g} requests/s")
            kept = self._kept(rate)
            low, high = (rate, high) if kept >= ON_TIME else (low, rate)
            if high < least:
                raise self._too_much(kept, f"one request in {1 / high:.0f} s")
        return low

    def replicas_for_all(self, replica_rate: float) -> tuple[int, Scenario]:
        """How many serve ON_TIME of all users' requests in time, and the simulation that shows it.

        What one replica serves says how many to begin with; bursts and its own doubt may ask for more.
        """
        needed = first = max(1, math.ceil(self.traffic.rate / replica_rate))
        while True:
            replicas, share = self._share(needed)
            profile = _steady(self.traffic.rate * share)
            self.told(f"{self.traffic.users:,} users on {needed} replicas")
            shown = Scenario("steady", replicas, self.run(profile, replicas, promises=False), profile)
            kept = shown.results.summary().kept_share
            if kept >= ON_TIME:
                return needed, shown
            if needed > 4 * first:
                raise self._too_much(kept, f"{needed} replicas, where {first} should do")
            needed += max(1, needed // 16)

    def spiked(self, needed: int, factor: float, *, promises: bool) -> Scenario:
        """factor times the users for SPIKE_S, on the replicas that the usual number needs."""
        replicas, share = self._share(needed)
        rate = self.traffic.rate * share
        profile = spike(rate, factor, at_s=10.0, length_s=SPIKE_S, duration_s=2 * SPIKE_S + 10.0)
        name = "promises on" if promises else "unbounded queue"
        self.told(f"{factor:g}x for {SPIKE_S:.0f} s, {name}")
        return Scenario(name, replicas, self.run(profile, replicas, promises=promises), profile)

    def at_once(self, replicas: int) -> Scenario:
        """Every user within one second, and nobody is sent away."""
        self.told(f"{self.traffic.users:,} users in one second on {replicas} replicas")
        profile = steady(self.traffic.users / replicas, 1.0)
        return Scenario("at once", replicas, self.run(profile, 1, promises=False), profile)

    def climb(self, replica_rate: float, start_s: float, name: str) -> Scenario:
        """From one replica's load to 3.6 replicas', over twice as long as one takes to start, by POLICIES[name]."""
        climb_s = 2 * start_s
        profile = ramp(replica_rate, 3.6 * replica_rate, climb_s=climb_s, before_s=20.0, after_s=20.0)
        tokens = self.traffic.prompt_mean + self.traffic.output_mean
        scaling = Scaling(
            Autoscaler(POLICIES[name], least=2, most=12, down_after_s=120.0),
            start_s,
            replica_rate * tokens,
            every_s=2.0,
            window_s=15.0,
        )
        self.told(f"a climb from 1 to 3.6 replicas' load in {climb_s:.0f} s, {name}")
        return Scenario(name, 2, self.run(profile, 2, promises=False, scaling=scaling), profile)

    def _kept(self, rate: float) -> float:
        """Of the requests that one replica gets at this rate, the share that is served in time."""
        return self.run(_steady(rate), 1, promises=False).summary().kept_share

    def _too_much(self, kept: float, even: str) -> InvalidInput:
        slo = self.traffic.slo
        promised = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "total": slo.total_s}
        words = ", ".join(f"{name} {value:g} s" for name, value in promised.items() if value is not None)
        return InvalidInput(
            f"{self.machine.name} keeps {words} for {kept:.1%} of requests, even for {even}: "
            "give a looser --slo or a faster machine"
        )

    def _share(self, needed: int) -> tuple[int, float]:
        """Replicas to simulate of those needed, and their share of the requests."""
        replicas = min(needed, MOST_REPLICAS)
        return replicas, replicas / needed

    def _ceiling(self) -> float:
        """Requests a second that no replica reaches: its tokens at full steps, without context, sampling or chance."""
        tokens = self.config.max_step_tokens
        step_s = self.machine.cost.ms(StepShape(tokens, 1, 0, 0)) / 1e3
        return 1.2 * tokens / step_s / (self.traffic.prompt_mean + self.traffic.output_mean)


def _steady(rate: float) -> RateProfile:
    return steady(rate, max(STEADY_S, STEADY_REQUESTS / rate))


def answers(planner: Planner, questions: Sequence[Question], processes: int) -> list[Scenario]:
    """What each question gives, in their order; on so many processes, which changes nothing but the time it takes."""
    if processes < 2:
        return [getattr(planner, name)(**arguments) for name, arguments in questions]
    scenarios = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = planner.machine, planner.traffic
        for asked in [pool.submit(_answer, *parts, *question) for question in questions]:
            scenarios.append(asked.result())
            planner.told(f"simulated: {len(scenarios)} of {len(questions)} scenarios")
    return scenarios


def _answer(machine: Machine, traffic: Traffic, name: str, arguments: dict[str, Any]) -> Scenario:
    scenario: Scenario = getattr(Planner(machine, traffic), name)(**arguments)
    return scenario


@dataclass(frozen=True, slots=True)
class Lead:
    """When to ask for a replica: while the load doubles every double_s, so long before those that serve are full."""

    double_s: float
    lead_s: float

    @property
    def utilisation(self) -> float:
        """Of the replicas that serve, at which to ask."""
        return float(2.0 ** (-self.lead_s / self.double_s))


def lead_times(start_s: float, look_s: float = 10.0) -> list[Lead]:
    """For loads that double in 5 minutes, in 30 and in 4 hours; look_s is what it takes to notice."""
    return [Lead(double_s, start_s + look_s) for double_s in (300.0, 1800.0, 14400.0)]


def cost_per_million(price_per_hour: float, replica_rate: float, tokens_per_request: float) -> float:
    """Of tokens, at a rate that a replica serves, in the price's currency."""
    return price_per_hour / 3600 / (replica_rate * tokens_per_request) * 1e6 if replica_rate > 0 else math.inf
