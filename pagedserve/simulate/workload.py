# SPDX-License-Identifier: Apache-2.0
"""Who asks when, and for how much: arrival processes, lengths, requests. Every draw comes from a seed.

Arrivals are a unit-rate renewal process stretched by the integral of a rate: with exponential gaps that is the
Poisson process of that rate, with gamma gaps a bursty one, whether the rate is steady, spikes or climbs.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pagedserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user is promised, in seconds; None promises nothing. tpot_s is the mean gap between tokens."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    total_s: float | None = None


NO_SLO = Slo()


@dataclass(frozen=True, slots=True)
class Request:
    """One request to come.

    Attributes:
        arrival_s: seconds since the workload's start.
        prompt: its token ids.
        output_tokens: how many it will generate.
        max_tokens: how many it asks for, which is all that a scheduler hears of its length; 0: output_tokens.
    """

    arrival_s: float
    prompt: Sequence[int]
    output_tokens: int
    slo: Slo = NO_SLO
    max_tokens: int = 0
    tenant: str = ""
    priority: int = 0

    @property
    def asked_tokens(self) -> int:
        """What it says it may generate."""
        return self.max_tokens or self.output_tokens


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time over which the rate goes in a straight line, in requests a second."""

    duration_s: float
    start_rate: float
    end_rate: float


class RateProfile:
    """Requests a second over time, in straight lines.

    Raises:
        InvalidInput: a duration or a rate is negative or not finite, or nobody ever comes.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            for value in (segment.duration_s, segment.start_rate, segment.end_rate):
                if not (math.isfinite(value) and value >= 0):
                    raise InvalidInput(f"a rate profile's durations and rates are finite and at least 0; got {segment}")
        self.segments = tuple(segment for segment in segments if segment.duration_s > 0)
        if self.expected <= 0:
            raise InvalidInput(f"nobody comes in {list(segments)}; give a rate and a duration above 0")

    @property
    def duration_s(self) -> float:
        return sum(segment.duration_s for segment in self.segments)

    @property
    def expected(self) -> float:
        """Requests that come on average."""
        return sum(s.duration_s * (s.start_rate + s.end_rate) / 2 for s in self.segments)

    def rate(self, t: float) -> float:
        """At second t; 0 outside."""
        for segment in self.segments:
            if 0 <= t < segment.duration_s:
                return segment.start_rate + (segment.end_rate - segment.start_rate) * t / segment.duration_s
            t -= segment.duration_s
        return 0.0

    def arrivals(self, seed: int, burstiness: float = 1.0) -> Iterator[float]:
        """Arrival times in rising order.

        Args:
            burstiness: shape of the gaps' gamma distribution: 1 is Poisson, 0.5 comes in clumps, 100 is a metronome.
        """
        if not (math.isfinite(burstiness) and burstiness > 0):
            raise InvalidInput(f"burstiness is {burstiness}; give a number above 0 (1 is Poisson)")
        clock = random.Random(seed)
        begin, left = 0.0, clock.gammavariate(burstiness, 1.0 / burstiness)
        for segment in self.segments:
            slope = (segment.end_rate - segment.start_rate) / segment.duration_s
            total = segment.duration_s * (segment.start_rate + segment.end_rate) / 2
            while left <= total:
                # Where the integral start_rate * x + slope * x^2 / 2 reaches `left`, free of cancellation.
                root = math.sqrt(max(segment.start_rate**2 + 2 * slope * left, 0.0))
                yield begin + min(2 * left / (segment.start_rate + root), segment.duration_s)
                left += clock.gammavariate(burstiness, 1.0 / burstiness)
            left -= total
            begin += segment.duration_s


def steady(rate: float, duration_s: float) -> RateProfile:
    """The same rate throughout."""
    return RateProfile([Segment(duration_s, rate, rate)])


def spike(rate: float, factor: float, *, at_s: float, length_s: float, duration_s: float) -> RateProfile:
    """A rate that is factor times itself from at_s on for length_s."""
    if at_s + length_s > duration_s:
        raise InvalidInput(f"a spike from {at_s} s for {length_s} s does not end within {duration_s} s")
    after_s = duration_s - at_s - length_s
    peak = rate * factor
    return RateProfile([Segment(at_s, rate, rate), Segment(length_s, peak, peak), Segment(after_s, rate, rate)])


def ramp(start_rate: float, end_rate: float, *, climb_s: float, before_s: float = 0, after_s: float = 0) -> RateProfile:
    """From one rate to another in a straight line."""
    climb = Segment(climb_s, start_rate, end_rate)
    return RateProfile([Segment(before_s, start_rate, start_rate), climb, Segment(after_s, end_rate, end_rate)])


Lengths = Callable[[random.Random], int]


def fixed(tokens: int) -> Lengths:
    """The same length always."""
    if tokens < 1:
        raise InvalidInput(f"a length is at least 1 token; got {tokens}")
    return lambda clock: tokens


def lognormal(mean: float, sigma: float, most: int) -> Lengths:
    """Lengths whose logarithm is normal, of this mean (before they are cut to 1 .. most)."""
    if not (mean >= 1 and sigma >= 0 and most >= 1):
        raise InvalidInput(f"a lognormal length needs mean >= 1, sigma >= 0, most >= 1; got {mean}, {sigma}, {most}")
    mu = math.log(mean) - sigma**2 / 2
    return lambda clock: min(max(1, round(clock.lognormvariate(mu, sigma))), most)


def unique_prompt(number: int, num_tokens: int) -> Sequence[int]:
    """A prompt that those of other numbers share no token with."""
    return array("Q", [number]) * num_tokens


def requests(
    arrivals_s: Iterator[float],
    prompt: Lengths,
    output: Lengths,
    *,
    slo: Slo = NO_SLO,
    seed: int = 0,
    max_tokens: int = 0,
) -> Iterator[Request]:
    """A request at each arrival, with a prompt that no other begins with."""
    clock = random.Random(seed)
    for number, arrival_s in enumerate(arrivals_s):
        yield Request(arrival_s, unique_prompt(number, prompt(clock)), output(clock), slo, max_tokens)


def with_slo(stream: Iterator[Request], slo: Slo) -> Iterator[Request]:
    """The same requests under another promise."""
    return (replace(request, slo=slo) for request in stream)
