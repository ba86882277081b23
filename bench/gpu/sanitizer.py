# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer over a few calls of each CUDA op; in a dry run its place is taken by the emulator's checks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

from bench.gpu.correctness import failure
from bench.gpu.place import Place, verdict
from bench.report import ROOT, Row
from pagedserve.emulate import Run, session
from pagedserve.errors import PagedServeError
from pagedserve.ops.cases import cases_for, make_inputs
from pagedserve.ops.registry import rows_of

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
EMULATED_CHECKS = {"memcheck": "bounds", "racecheck": "races"}
OPS = ("plan_decode", "paged_decode", "append_kv", "copy_pages", "merge_states")
TOOL_LIMIT_S = 60


def run_calls(place: Place, op: str) -> Exception | None:
    """The shortest case of the op that the backend takes; what goes wrong with its result."""
    row = next(row for row in rows_of(op) if row.backend == place.backend)
    case = min(cases_for(row), key=lambda case: sum(max(length, 0) for length in case.lens))
    return failure(place, op, make_inputs(op, case))


def ours(place: Place) -> list[str]:
    return [op for op in OPS if not place.lacks(op)]


def rows(place: Place, done: set[str]) -> Iterator[Row]:
    for tool in TOOLS:
        if place.is_dry and tool not in EMULATED_CHECKS:
            continue
        for op in ours(place):
            name = f"{tool} {op}"
            if name not in done:
                yield emulated_check(place, name, tool, op) if place.is_dry else device_check(name, tool, op)


def emulated_check(place: Place, name: str, tool: str, op: str) -> Row:
    try:
        with session(Run(build=EMULATED_CHECKS[tool])):
            return verdict(name, run_calls(place, op))
    except PagedServeError as error:
        return verdict(name, error)


def device_check(name: str, tool: str, op: str) -> Row:
    """compute-sanitizer around a Python that makes the calls; a machine whose driver refuses it says so in the row."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if found is None:
        return {"case": name, "why": "there is no compute-sanitizer here"}
    words = [found, "--tool", tool, "--error-exitcode", "97", sys.executable, "-m", "bench.gpu.sanitizer", op]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"case": name, "why": f"not done in {TOOL_LIMIT_S} s"}
    text = done.stdout + done.stderr
    if "not supported" in text:
        return {"case": name, "why": "compute-sanitizer does not support this machine"}
    error = None if done.returncode == 0 else RuntimeError(text[-500:])
    return verdict(name, error)


def main() -> None:
    error = run_calls(Place(is_dry=False), sys.argv[1])
    if error is not None:
        raise error


if __name__ == "__main__":
    main()
