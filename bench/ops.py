# SPDX-License-Identifier: Apache-2.0
"""Times ops of pagedserve beside torch's own functions, as a share of what the machine was measured to do at best."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.cases import BenchCase, cases_of
from bench.cases.case import Inputs, nbytes
from bench.report import Row
from bench.roofline import Roof
from bench.timing import Rotation, alternate
from pagedserve import ops

COLUMNS = {
    "op": "op",
    "case": "case",
    "inputs": "inputs",
    "us": "us",
    "spread_percent": "±%",
    "min_us": "min us",
    "GB_per_s": "GB/s",
    "GFLOP_per_s": "GFLOP/s",
    "roof_percent": "% of roof",
    "bound": "bound",
    "torch_min_us": "torch min us",
    "times_torch": "x torch",
}
DEFINITIONS = """\
us: median of whole calls of pagedserve.ops, checks included; ±%: (p90 - p10) / median. Everything right of it is
of the shortest call, as the roof is what the machine did at best. Inputs are cold: they rotate through twice the last
cache; or warm: a thousand copies are less than that. GB/s and GFLOP/s count what the op's definition must move and
compute, once. % of roof: the time at the measured bandwidth, or at the measured rate of matrix products if that is
longer (bound says which), over our time. x torch: torch's time over ours; it takes its turn between our calls, on the
same inputs."""


def ours(case: BenchCase, inputs: Inputs, backend: str) -> Callable[[], object]:
    return functools.partial(getattr(ops, case.op), **inputs, backend=backend)


def time_case(
    case: BenchCase, backend: str, *, with_torch: bool, budget_s: float, cold_bytes: int | None = None
) -> Row:
    """One row: our time, torch's beside it, what the op moves and computes. `under_roof` adds the share.

    Raises:
        BackendUnavailable, InvalidInput: as the op raises them for this backend.
    """

    def make() -> tuple[Inputs, Inputs]:
        inputs = case.make()
        return inputs, case.prepare(inputs) if with_torch else {}

    first, _ = make()
    cost = ops.explain(case.op, first)
    rotation = Rotation(make, nbytes(first), cold_bytes)
    variants: dict[str, Callable[[], object]] = {"ours": lambda: ours(case, rotation.next()[0], backend)()}
    if with_torch:
        variants["torch"] = lambda: case.torch(rotation.next()[1])
    with torch.inference_mode():
        for inputs, _ in rotation.copies:
            if any(isinstance(value, ops.Weight) for value in inputs.values()):
                ours(case, inputs, backend)()  # a backend packs a weight at its first call
        timings = alternate(variants, budget_s=budget_s)
    mine = timings["ours"]
    row: Row = {
        "bench": "ops",
        "op": case.op,
        "case": case.name,
        "backend": backend,
        "inputs": "cold" if rotation.is_cold else "warm",
        "us": mine.median_s * 1e6,
        "spread_percent": mine.spread * 100,
        "min_us": mine.min_s * 1e6,
        "calls": mine.num_calls,
        "GB_per_s": cost.bytes / mine.min_s / 1e9,
        "GFLOP_per_s": cost.flops / mine.min_s / 1e9,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "rate": case.rate,
    }
    if with_torch:
        peer = timings["torch"]
        row |= {"torch_us": peer.median_s * 1e6, "torch_min_us": peer.min_s * 1e6, "torch_way": case.torch_way}
        row["times_torch"] = peer.min_s / mine.min_s
    return row


def under_roof(row: Row, roof: Roof) -> Row:
    """The row with its share of what the machine can do."""
    cost = (row["bytes"], row["flops"], row["rate"])
    return row | {
        "roof_percent": roof.floor_s(*cost) / row["min_us"] * 1e8,
        "bound": roof.bound(*cost),
        "roof_GB_per_s": roof.read_bytes_per_s / 1e9,
        "roof_GFLOP_per_s": roof.flops_per_s[row["rate"]] / 1e9,
    }


def chosen(names: Sequence[str], grid: str, only: str) -> Iterator[BenchCase]:
    """Cases of the named ops whose own name holds `only`."""
    for name in names:
        for case in cases_of(name, grid):
            if only in case.name:
                yield case


def repro(case: BenchCase, backend: str, peer: str, threads: int, grid: str) -> str:
    """The command that times this case again."""
    words = ["python", "-m", "bench", "ops", case.op, "--backend", backend, "--peer", peer]
    return shlex.join([*words, "--threads", str(threads), "--grid", grid, "--only", case.name])
