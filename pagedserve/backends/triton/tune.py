# SPDX-License-Identifier: Apache-2.0
"""Times configurations on a GPU and writes the table of its architecture. Nothing is ever timed in a user's request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import Target, read_table, row
from pagedserve.errors import BackendUnavailable

Table = dict[str, list[dict[str, Any]]]

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
    "rope_append_kv": {"heads": (1, 4, 8), "num_warps": (1, 2, 4)},
    "sample": {"block": (1024, 2048), "num_warps": (8, 16)},
}


@dataclass(frozen=True)
class Trial:
    """A call that stands for a row of the table.

    Attributes:
        facts: the sizes that choose the row.
        make: the call's launches for a target, each time on the same tensors.
    """

    op: str
    name: str
    facts: Mapping[str, int]
    make: Callable[[], Callable[[Target], list[Launch]]]


def candidates(op: str) -> Iterator[dict[str, int]]:
    """Every configuration that is tried for an op."""
    names = SEARCHED[op]
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))


def fastest(trial: Trial, target: Target, time_us: Callable[[list[Launch]], float]) -> tuple[dict[str, int], float]:
    """The fastest configuration of a trial, and its microseconds. One that does not compile or fit is passed over."""
    build = trial.make()
    found: list[tuple[float, dict[str, int]]] = []
    for use in candidates(trial.op):
        try:
            found.append((time_us(build(replace(target, instead={trial.op: use}))), use))
        except (CompilationError, OutOfResources):
            continue
    if not found:
        raise BackendUnavailable(f"no configuration of {trial.op} {trial.name} runs here")
    spent, use = min(found, key=lambda each: each[0])
    return use, spent


def tune(
    trials: Sequence[Trial],
    target: Target,
    signature: Mapping[str, str],
    time_us: Callable[[list[Launch]], float],
) -> Table:
    """An architecture's table, with the rows that trials stand for replaced by the fastest configuration.

    Args:
        signature: what the times depend on: GPU, versions, date.
        time_us: times some launches.
    """
    table: Table = json.loads(json.dumps(read_table(target.table)))
    for trial in trials:
        use, spent = fastest(trial, target, time_us)
        entry = row(table, trial.op, trial.facts)
        entry["use"], entry["measured"] = use, {"case": trial.name, "us": round(spent, 2), **signature}
    return table


def on_device_us(launches: list[Launch]) -> float:
    """The median time of some launches on their device, in microseconds."""
    from triton.testing import do_bench

    def run() -> None:
        for launch in launches:
            launch.run()

    return float(do_bench(run, return_mode="median")) * 1000


def write_table(table: Mapping[str, Any], path: Path) -> None:
    """A table, one row a line."""
    ops = (
        f"  {json.dumps(op)}: [\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in rows) + "\n  ]"
        for op, rows in table.items()
    )
    path.write_text("{\n" + ",\n".join(ops) + "\n}\n", encoding="utf-8")
