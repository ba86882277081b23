# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best, measured: read and copy bandwidth, and multiply-add rates of matrix products.

Reads are torch's maximum over a float tensor four times the last cache; products are torch's square matrix products
in float32, bfloat16 and int8 (sums in int32). The best of many calls counts: a roof is what is possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bench.device import Call, between_events
from bench.timing import cache_bytes, seconds_of
from pagedserve.memory import host_bytes

EDGE = 1024
RATES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Roof:
    """Bytes and floating-point operations a second, with a number of threads. A multiply-add is two operations."""

    num_threads: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    flops_per_s: dict[str, float]

    def best(self, other: Roof) -> Roof:
        """The higher of two measurements, each for itself: what else the machine did can only have lowered them."""
        return Roof(
            self.num_threads,
            max(self.read_bytes_per_s, other.read_bytes_per_s),
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            {name: max(rate, other.flops_per_s[name]) for name, rate in self.flops_per_s.items()},
        )

    def with_read(self, bytes_per_s: float) -> Roof:
        """The roof with that read bandwidth, if it is the higher one."""
        return replace(self, read_bytes_per_s=max(self.read_bytes_per_s, bytes_per_s))

    def floor_s(self, num_bytes: float, flops: float = 0.0, dtype: str = "float32") -> float:
        """The shortest time in which so much can be read and computed, if both overlap fully."""
        return max(num_bytes / self.read_bytes_per_s, flops / self.flops_per_s[dtype])

    def bound(self, num_bytes: float, flops: float = 0.0, dtype: str = "float32") -> str:
        """Which of the two decides: "memory" or "compute"."""
        is_memory = num_bytes / self.read_bytes_per_s >= flops / self.flops_per_s[dtype]
        return "memory" if is_memory else "compute"


def best_s(call: Callable[[], object], budget_s: float, seconds: Callable[[Call], float] = seconds_of) -> float:
    """The shortest of the calls that fit the budget, two at least; the first warms up and does not count."""
    call()
    best = float("inf")
    end = time.perf_counter() + budget_s
    for count in range(1_000_000):
        best = min(best, seconds(call))
        if count and time.perf_counter() >= end:
            break
    return best


def bandwidths(num_bytes: int, budget_s: float, device: str = "cpu") -> tuple[float, float]:
    """Bytes a second of reading a tensor, and of copying it (read and written bytes together)."""
    seconds = between_events if device == "cuda" else seconds_of
    source, target = floats(num_bytes, device), floats(num_bytes, device)
    read = source.nbytes / best_s(source.max, budget_s, seconds)
    return read, 2 * source.nbytes / best_s(lambda: target.copy_(source), budget_s, seconds)


def read_bytes(device: str) -> int:
    """Size of a tensor whose reading says what memory gives, whatever the caches hold."""
    return 2 << 30 if device == "cuda" else 4 * cache_bytes()


def floats(num_bytes: int, device: str) -> torch.Tensor:
    """Random numbers; on huge pages of host memory, as the engine's own, and then read as fast as can be."""
    if device == "cuda":
        return torch.randn(num_bytes // 4, device=device)
    return host_bytes(num_bytes // 4 * 4).view(torch.float32).normal_()


def products(edge: int, device: str) -> dict[str, Call]:
    """Matrix products in each of RATES, on random numbers: zeros draw less power and run faster."""
    square = torch.randn(edge, edge, device=device)
    half, codes = square.bfloat16(), (square * 32).to(torch.int8)
    return {
        "float32": lambda: square @ square,
        "bfloat16": lambda: half @ half,
        "int8": lambda: torch._int_mm(codes, codes),
    }


def measure(
    num_threads: int,
    *,
    budget_s: float = 2.0,
    num_bytes: int | None = None,
    edge: int | None = None,
    device: str = "cpu",
) -> Roof:
    """Measures a Roof; torch's number of threads is what it was, afterwards.

    Args:
        budget_s: for all five measurements together, about.
        num_bytes: of the tensor that is read; default read_bytes(device).
        edge: of the square matrices; default EDGE, on a GPU eight times that.
        device: "cpu" or "cuda".
    """
    share_s = budget_s / 5
    on_gpu = device == "cuda"
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        read, copy = bandwidths(num_bytes or read_bytes(device), share_s, device)
        edge = edge or (8 * EDGE if on_gpu else EDGE)
        seconds = between_events if on_gpu else seconds_of
        rates = {name: 2.0 * edge**3 / best_s(call, share_s, seconds) for name, call in products(edge, device).items()}
    finally:
        torch.set_num_threads(threads_before)
    return Roof(num_threads, read, copy, rates)


def describe(roof: Roof) -> str:
    """One line for the head of a table."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in roof.flops_per_s.items())
    return (
        f"roof with {roof.num_threads} threads: read {roof.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"copy {roof.copy_bytes_per_s / 1e9:.1f} GB/s, {rates}"
    )
