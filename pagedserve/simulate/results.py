# SPDX-License-Identifier: Apache-2.0
"""What became of every request, in columns, and the figures that people read.

The definitions are those of the load tools in use (vLLM's bench serve; AIPerf calls TPOT "inter-token latency"):

    TTFT      first token - arrival
    TPOT      (last token - first token) / (output tokens - 1), of each request with at least two
    E2E       last token - arrival
    goodput   requests that kept every promise / seconds; and as a share of all that arrived, the refused included
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagedserve.simulate.workload import Request, Slo


def keeps(slo: Slo, ttft_s: float, tpot_s: float, total_s: float) -> bool:
    """Whether an answer kept its promises. NaN, of what never came, keeps none; of a TPOT with one token, it does."""
    return (
        (slo.ttft_s is None or ttft_s <= slo.ttft_s)
        and (slo.tpot_s is None or math.isnan(tpot_s) or tpot_s <= slo.tpot_s)
        and (slo.total_s is None or total_s <= slo.total_s)
        and not math.isnan(total_s)
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100.0
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Sample:
    """All replicas at one moment."""

    t_s: float
    waiting: int
    running: int
    ready: int
    starting: int
    backlog_tokens: int


class Results:
    """Requests in the order of their end, one place in each column; NaN for what never happened.

    Attributes:
        ends: "stop" or "length" of those served; else the reason of the refusal, "expired", "abort" or "error".
        attempts: 0 for a first arrival, n for the n-th return.
        samples: the timeline.
        places_claimed, places_kept: by those who came back when they were told to, and of these who was admitted.
        replica_s: seconds of replicas that were paid for, their start included.
    """

    def __init__(self) -> None:
        self.numbers = array("q")
        self.attempts = array("h")
        self.arrivals = array("d")
        self.ttfts, self.tpots, self.totals = array("d"), array("d"), array("d")
        self.retries_after = array("d")
        self.prompt_tokens, self.output_tokens = array("q"), array("q")
        self.kept = bytearray()
        self.ends: list[str] = []
        self.samples: list[Sample] = []
        self.replica_s = 0.0
        self.end_s = 0.0
        self.steps = 0
        self.preemptions = self.recomputed_tokens = self.prefix_hit_tokens = 0
        self.places_claimed = self.places_kept = 0

    def __len__(self) -> int:
        return len(self.ends)

    def add(
        self,
        number: int,
        request: Request,
        end: str,
        *,
        attempt: int = 0,
        arrival_s: float | None = None,
        first_s: float | None = None,
        last_s: float | None = None,
        output_tokens: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        """A request that is over. Times are seconds of the workload."""
        came = request.arrival_s if arrival_s is None else arrival_s
        ttft = math.nan if first_s is None else first_s - came
        total = math.nan if last_s is None else last_s - came
        tpot = math.nan
        if first_s is not None and last_s is not None and output_tokens > 1:
            tpot = (last_s - first_s) / (output_tokens - 1)
        self.numbers.append(number)
        self.attempts.append(attempt)
        self.arrivals.append(came)
        self.ttfts.append(ttft)
        self.tpots.append(tpot)
        self.totals.append(total)
        self.retries_after.append(math.nan if retry_after_s is None else retry_after_s)
        self.prompt_tokens.append(len(request.prompt))
        self.output_tokens.append(output_tokens)
        self.ends.append(end)
        self.kept.append(end in SERVED and keeps(request.slo, ttft, tpot, total))

    def summary(self, *, first_attempts: bool = True) -> Summary:
        """The figures, of first arrivals alone or of every attempt."""
        places = [i for i in range(len(self)) if not (first_attempts and self.attempts[i])]
        served = [i for i in places if self.ends[i] in SERVED]
        came_back = [i for i in range(len(self)) if self.attempts[i]]
        span = (max(self.arrivals) - min(self.arrivals)) if self.arrivals else 0.0
        return Summary(
            arrivals=len(places),
            served=len(served),
            kept=sum(self.kept[i] for i in places),
            refused=Counter(self.ends[i] for i in places if self.ends[i] not in SERVED),
            ttft_s=_spread(self.ttfts, served),
            tpot_s=_spread(self.tpots, served),
            total_s=_spread(self.totals, served),
            retry_after_s=_spread(self.retries_after, places),
            came_back=len(came_back),
            came_back_kept=sum(self.kept[i] for i in came_back),
            span_s=span,
            output_tokens=sum(self.output_tokens[i] for i in served),
            prompt_tokens=sum(self.prompt_tokens[i] for i in served),
        )


SERVED = frozenset({"stop", "length"})


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles in seconds; NaN of nothing."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run; times of those that were served.

    Attributes:
        kept: requests that kept every promise.
        refused: how many by reason.
        came_back, came_back_kept: attempts after a Retry-After, and those of them that kept every promise.
        span_s: from the first arrival to the last.
    """

    arrivals: int
    served: int
    kept: int
    refused: Counter[str]
    ttft_s: Spread
    tpot_s: Spread
    total_s: Spread
    retry_after_s: Spread
    came_back: int
    came_back_kept: int
    span_s: float
    output_tokens: int
    prompt_tokens: int

    @property
    def kept_share(self) -> float:
        """Goodput as a share of all that arrived."""
        return self.kept / self.arrivals if self.arrivals else math.nan

    @property
    def kept_of_served(self) -> float:
        """Share of those admitted to the end that kept every promise."""
        return self.kept / self.served if self.served else math.nan

    @property
    def goodput_per_s(self) -> float:
        """Requests a second that kept every promise."""
        return self.kept / self.span_s if self.span_s > 0 else math.nan


def _spread(column: Sequence[float], places: Sequence[int]) -> Spread:
    values = sorted(value for i in places if not math.isnan(value := column[i]))
    return Spread(
        percentile(values, 50), percentile(values, 95), percentile(values, 99), values[-1] if values else math.nan
    )
