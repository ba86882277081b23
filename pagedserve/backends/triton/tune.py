# SPDX-License-Identifier: Apache-2.0
"""Times configurations on a GPU and writes the table of its architecture. Nothing is ever timed in a user's request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import Target, of_device, read_table
from pagedserve.errors import BackendUnavailable

Build = Callable[[Target], list[Launch]]

# What is tried, by op: every combination.
SEARCHED: dict[str, dict[str, tuple[int, ...]]] = {
    "paged_decode": {
        "block_n": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
        "programs_per_processor": (8, 16, 32),
    },
    "paged_prefill": {
        "block_m": (64, 128, 256),
        "block_n": (32, 64, 128),
        "num_warps": (4, 8, 16),
        "num_stages": (2, 3, 4),
    },
    "rms_norm": {"block": (4096, 8192, 16384), "num_warps": (4, 8, 16)},
    "silu_mul": {"block": (1024, 2048, 4096), "num_warps": (4, 8)},
    "gelu_mul": {"block": (1024, 2048, 4096), "num_warps": (4, 8)},
    "rope": {"heads": (4, 8, 16, 32), "num_warps": (2, 4, 8)},
    "merge_states": {"num_warps": (1, 2, 4)},
    "append_kv": {"heads": (1, 4, 8), "num_warps": (1, 2, 4)},
    "sample": {"block": (1024, 2048), "num_warps": (8, 16)},
}


@dataclass(frozen=True)
class Trial:
    """A call that stands for a row of the table: its name, and how its launches are built for a target."""

    op: str
    name: str
    place: int  # of its row in the op's table
    build: Build


def candidates(op: str) -> Iterator[dict[str, int]]:
    """Every configuration that is tried for an op."""
    names = SEARCHED[op]
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))


def fastest(trial: Trial, target: Target, time_us: Callable[[list[Launch]], float]) -> tuple[dict[str, int], float]:
    """The fastest configuration of a trial and its microseconds. One that does not compile or fit is passed over."""
    best: tuple[dict[str, int], float] | None = None
    for use in candidates(trial.op):
        try:
            spent = time_us(trial.build(replace(target, instead={trial.op: use})))
        except Exception as error:
            if "OutOfResources" not in type(error).__name__ and "Compilation" not in type(error).__name__:
                raise
            continue
        if best is None or spent < best[1]:
            best = (use, spent)
    if best is None:
        raise BackendUnavailable(f"no configuration of {trial.op} {trial.name} runs here")
    return best


def tune(trials: list[Trial], signature: Mapping[str, str], time_us: Callable[[list[Launch]], float]) -> dict[str, Any]:
    """The table of the current device's architecture with the rows of trials replaced by what was measured.

    Args:
        signature: what the times depend on: GPU, driver, versions, date.
    """
    target = of_device(torch.cuda.current_device())
    table = {op: [dict(row) for row in rows] for op, rows in read_table(target.table).items()}
    for trial in trials:
        use, spent = fastest(trial, target, time_us)
        row = table[trial.op][trial.place]
        row["use"] = use
        row["measured"] = {"case": trial.name, "us": round(spent, 2), **signature}
    return table


def on_device_us(launches: list[Launch]) -> float:
    """The median time of some launches, in microseconds."""
    from triton.testing import do_bench

    def run() -> None:
        for launch in launches:
            launch.run()

    return float(do_bench(run, return_mode="median")) * 1000


def write_table(table: Mapping[str, Any], path: Path) -> None:
    """A table, one row a line."""
    ops = (
        f"  {json.dumps(op)}: [\n" + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
        for op, rows in table.items()
    )
    path.write_text("{\n" + ",\n".join(ops) + "\n}\n", encoding="utf-8")
