# SPDX-License-Identifier: Apache-2.0
"""python -m bench gpu: everything that needs a GPU, in order of value, within a budget of seconds.

Each part is a process of its own: a kernel that hangs or poisons the device costs that part, and no more. Rows are
written as they are found, so a run that is cut off can be resumed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import report
from bench.gpu.parts import PARTS, Part
from bench.gpu.place import Place, verdict

DRY_RESULTS = report.ROOT / "build" / "gpu-dry-run"
GRACE_S = 5.0  # from asking a part to end to ending it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds for all parts (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="emulated, with tiny shapes: no GPU is needed")
    parser.add_argument("--only", default="", metavar="PARTS", help=f"some of {names}, with commas")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="rows of a run that was cut off: go on with it")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # the command runs itself with this, once for each part


def run(args: argparse.Namespace, console: Console) -> int:
    place = Place(args.dry_run)
    if args.part:
        return run_part(part_of(args.part), place, args.resume)
    import torch

    if not place.is_dry and not torch.cuda.is_available():
        console.print("[red]there is no CUDA device here; --dry-run does everything emulated, with tiny shapes[/red]")
        return 2
    wanted = [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in {part.name for part in PARTS}]
    if unknown:
        console.print(f"[red]there is no part {unknown[0]!r}; there are {', '.join(p.name for p in PARTS)}[/red]")
        return 2
    parts = [part for part in PARTS if not wanted or part.name in wanted]
    file = args.resume or new_file(place)
    console.print(f"rows go to {file}")
    states = run_parts(parts, place, file, args.budget_s, console)
    show(report.Sheet.resumed(file), states, console)
    failed = any(row.get("passes") is False for row in report.Sheet.resumed(file).rows)
    return 1 if failed or any(state == "failed" for state in states.values()) else 0


def new_file(place: Place) -> Path:
    folder = DRY_RESULTS if place.is_dry else report.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"gpu-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.jsonl"


def part_of(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)


def run_parts(parts: Sequence[Part], place: Place, file: Path, budget_s: float, console: Console) -> dict[str, str]:
    """How each part ended: "done", "cut off", "failed", or "no time"."""
    end = time.monotonic() + budget_s
    states = {}
    for part in parts:
        left = end - time.monotonic()
        if left < GRACE_S:
            states[part.name] = "no time"
            continue
        words = [sys.executable, "-m", "bench", "gpu", "--part", part.name, "--resume", str(file)]
        limit = min(part.limit_s, left)
        console.print(f"{part.name}: {part.what}, at most {limit:.0f} s")
        states[part.name] = watched([*words, *(["--dry-run"] if place.is_dry else [])], limit)
    return states


def watched(words: Sequence[str], limit_s: float) -> str:
    """Runs a command in a process group that ends with its time."""
    process = subprocess.Popen(words, cwd=report.ROOT, start_new_session=True)
    try:
        return "done" if process.wait(timeout=limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return "cut off"


def run_part(part: Part, place: Place, file: Path) -> int:
    """Adds a part's rows to the file; what is there already is not done again."""
    import torch

    command = f"python -m bench gpu --only {part.name}" + (" --dry-run" if place.is_dry else "")
    sheet = report.Sheet.resumed(file, report.sign(torch.get_num_threads(), command))
    done = {row["case"] for row in sheet.rows if row["part"] == part.name}
    head = {"bench": "gpu", "part": part.name, "backend": place.backend}
    try:
        for row in part.rows(place, done):
            sheet.add({**head, **row})
    except Exception as error:  # whatever it was: the file is all that is kept of this process
        sheet.add({**head, **verdict("the part itself", error)})
        raise
    return 0


def show(sheet: report.Sheet, states: dict[str, str], console: Console) -> None:
    """A line for each part, then what failed, then what was measured."""
    table = []
    for name, state in states.items():
        rows = [row for row in sheet.rows if row["part"] == name]
        wrong = sum(row.get("passes") is False for row in rows)
        table.append({"part": name, "state": state, "rows": len(rows), "wrong": wrong})
    report.show(table, {name: name for name in ("part", "state", "rows", "wrong")}, title="Parts", console=console)
    for row in sheet.rows:
        if row.get("why"):
            console.print(f"[yellow]{row['part']} {row['case']}: {row['why']}[/yellow]", highlight=False)
    timed = [row for row in sheet.rows if row["part"] == "grid" and "us" in row]
    if timed:
        from bench import ops

        report.show(timed, ops.COLUMNS, title=f"Grid, {timed[0]['gpu']}", console=console)
