# SPDX-License-Identifier: Apache-2.0
"""What the scheduler costs per step in steady decode: thread CPU time, and work counted in bytecodes and calls."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from bench import report
from bench.scheduler_steps import PAGE_SIZE, count_step, decoding, one_step

PROMPT_TOKENS, NUM_STEPS = 512, 400
BUDGET_US = {64: 60, 256: 150, 1024: 500}
DEFINITIONS = (
    f"plan and apply(StepDone) of one step; {PROMPT_TOKENS}-token prompts, every request with a TTFT deadline, a TPOT "
    f"target and a total deadline, pages of {PAGE_SIZE} filled at different steps. CPU time of the thread, over "
    f"{NUM_STEPS} steps, behind a collection of what the set-up left; gc: what of the mean is the garbage collector's, "
    "which looks through the whole process now and then. Bytecodes and calls: of Python, in the step of "
    f"{PAGE_SIZE} with the least, and on average."
)


@contextmanager
def collecting() -> Iterator[list[float]]:
    """CPU microseconds of each garbage collection meanwhile."""
    took: list[float] = []

    def note(phase: str, info: object) -> None:
        now = time.thread_time_ns() / 1e3
        took.append(-now) if phase == "start" else took.append(took.pop() + now)

    gc.callbacks.append(note)
    try:
        yield took
    finally:
        gc.callbacks.remove(note)


def measure(num_seqs: int) -> dict[str, float]:
    """A row of the table."""
    scheduler, plan = decoding(num_seqs, PROMPT_TOKENS)
    tokens = list(range(100, 100 + num_seqs))
    times = []
    gc.collect()
    with collecting() as collected:
        for _ in range(NUM_STEPS):
            start = time.thread_time_ns()
            plan = one_step(scheduler, plan, tokens)
            times.append((time.thread_time_ns() - start) / 1e3)
    times.sort()
    work = []
    for _ in range(PAGE_SIZE):
        plan, opcodes, calls = count_step(scheduler, plan, tokens)
        work.append((opcodes, calls))
    return {
        "running": num_seqs,
        "p10_us": times[len(times) // 10],
        "median_us": times[len(times) // 2],
        "mean_us": sum(times) / len(times),
        "gc_us": sum(collected) / len(times),
        "p99_us": times[len(times) * 99 // 100],
        "opcodes_least": min(work)[0],
        "opcodes_mean": sum(opcodes for opcodes, _ in work) / len(work),
        "calls_mean": sum(calls for _, calls in work) / len(work),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256, 1024], help="sequences that decode")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure and print; 1 where a median is over its budget."""
    rows = [measure(count) for count in args.running]
    table = Table(title="the scheduler's own work per step, steady decode", title_justify="left")
    for name in (*rows[0], "budget_us"):
        table.add_column(name, justify="right")
    for row in rows:
        budget = BUDGET_US.get(int(row["running"]))
        table.add_row(*(f"{value:,.4g}" for value in row.values()), "-" if budget is None else str(budget))
    console.print(table)
    console.print(DEFINITIONS)
    if not args.no_save:
        sheet = report.Sheet("scheduler", report.sign(args.threads, "python -m bench scheduler"))
        for row in rows:
            sheet.add({"bench": "scheduler", **row})
        console.print(*(f"wrote {file}" for file in sheet.files), sep="\n")
    return int(any(row["median_us"] > BUDGET_US.get(int(row["running"]), float("inf")) for row in rows))
