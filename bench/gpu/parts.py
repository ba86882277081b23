# SPDX-License-Identifier: Apache-2.0
"""What `python -m bench gpu` does, in order of value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.gpu.place import Place
from bench.report import Row


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        limit_s: after which it is ended, and the next begun.
        rows: yields what it found as it goes, but for cases that are done.
    """

    name: str
    limit_s: float
    what: str
    rows: Callable[[Place, set[str]], Iterator[Row]]


def intrinsics(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import intrinsics as part

    return part.rows(place, done)


def sweep(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import correctness

    return correctness.sweep(place, done)


def soak(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import correctness

    return correctness.soak(place, done)


def roofs(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import speed

    return speed.roofs(place, done)


def grid(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import speed

    return speed.grid(place, done)


def constants(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import speed

    return speed.constants(place, done)


def sanitizer(place: Place, done: set[str]) -> Iterator[Row]:
    from bench.gpu import sanitizer as part

    return part.rows(place, done)


PARTS = (
    Part("intrinsics", 90, "every word of csrc/target against the emulator", intrinsics),
    Part("correctness", 120, "every op against the float64 reference", sweep),
    Part("roofs", 30, "read and copy bandwidth, rates of matrix products", roofs),
    Part("grid", 240, "decodes and cache ops beside every peer", grid),
    Part("soak", 60, "one graph, replayed with other lengths", soak),
    Part("constants", 60, "the constants of a cost model", constants),
    Part("sanitizer", 240, "compute-sanitizer over every CUDA op", sanitizer),
)
