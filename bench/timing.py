# SPDX-License-Identifier: Apache-2.0
"""Times of short calls: cold inputs, variants in turn, medians with their spread."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Inputs = TypeVar("Inputs")

LAST_LEVEL = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
MAX_COPIES = 1000
UNKNOWN_CACHE_BYTES = 64 << 20  # where the machine does not say: more than most processors share


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant's calls: the median, the tenth and ninetieth percentiles, and the shortest."""

    median_s: float
    p10_s: float
    p90_s: float
    min_s: float
    num_calls: int

    @property
    def spread(self) -> float:
        """(p90 - p10) / median: how far to trust the median."""
        return (self.p90_s - self.p10_s) / self.median_s if self.median_s else 0.0


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered, non-empty sequence lies, between neighbours linearly."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(seconds: Sequence[float]) -> Timing:
    """The statistics of at least one call."""
    if not seconds:
        raise ValueError("no call was timed")
    ordered = sorted(seconds)
    return Timing(
        median_s=percentile(ordered, 0.5),
        p10_s=percentile(ordered, 0.1),
        p90_s=percentile(ordered, 0.9),
        min_s=ordered[0],
        num_calls=len(ordered),
    )


def cache_bytes() -> int:
    """Size of the processor's last shared cache."""
    try:
        text = LAST_LEVEL.read_text().strip()
    except OSError:
        return UNKNOWN_CACHE_BYTES
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


class Rotation(Generic[Inputs]):
    """Copies of a call's inputs, used in turn, so many that a copy has left the cache before its turn comes again.

    The copies take twice the cache together; one is enough for a call that reads as much by itself. No more than
    MAX_COPIES are made.

    Args:
        cold_bytes: that the copies shall take together; default twice cache.
        cache: bytes of the cache; default the processor's last.

    Attributes:
        cold_bytes: as asked for.
        is_cold: the copies do take so much.
    """

    def __init__(
        self, make: Callable[[], Inputs], nbytes: int, cold_bytes: int | None = None, cache: int | None = None
    ) -> None:
        cache = cache or cache_bytes()
        self.cold_bytes = 2 * cache if cold_bytes is None else cold_bytes
        needed = max(1, -(-self.cold_bytes // max(nbytes, 1)))
        self.copies = [make() for _ in range(min(needed, MAX_COPIES))]
        self.is_cold = len(self.copies) * nbytes >= 2 * cache
        self._next = 0

    def next(self) -> Inputs:
        copy = self.copies[self._next]
        self._next = (self._next + 1) % len(self.copies)
        return copy


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def alternate(
    variants: Mapping[str, Callable[[], object]], *, budget_s: float = 2.0, min_calls: int = 5, warm_calls: int = 2
) -> dict[str, Timing]:
    """Times variants of one call in turn, a call each, so that what else the machine does meets all alike.

    Args:
        variants: name -> the call.
        budget_s: for all variants together; at least min_calls each are timed whatever they take.
        warm_calls: untimed calls of each before.
    """
    samples = {name: functools.partial(seconds_of, call) for name, call in variants.items()}
    return alternate_samples(samples, budget_s=budget_s, min_calls=min_calls, warm_calls=warm_calls)


def alternate_samples(
    samples: Mapping[str, Callable[[], float]], *, budget_s: float, min_calls: int = 5, warm_calls: int = 2
) -> dict[str, Timing]:
    """The same for variants that time themselves: each gives the seconds of a call."""
    for sample in samples.values():
        for _ in range(warm_calls):
            sample()
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    end = time.perf_counter() + budget_s
    rounds = 0
    while rounds < min_calls or time.perf_counter() < end:
        for name, sample in samples.items():
            seconds[name].append(sample())
        rounds += 1
    return {name: summarise(values) for name, values in seconds.items()}
