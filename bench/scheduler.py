# SPDX-License-Identifier: Apache-2.0
"""What the scheduler costs per step in steady decode: thread CPU time, and work counted in bytecodes and calls."""

from __future__ import annotations

import argparse
import sys
import time
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive, StepDone, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

PAGE_SIZE, PROMPT_TOKENS, NUM_STEPS = 16, 512, 400
BUDGET_US = {64: 60, 256: 150, 1024: 500}
DEFINITIONS = (
    f"plan and apply(StepDone) of one step; {PROMPT_TOKENS}-token prompts, every request with a TTFT deadline, a TPOT "
    f"target and a total deadline, pages of {PAGE_SIZE} filled at different steps. CPU time of the thread, over "
    f"{NUM_STEPS} steps. Bytecodes and calls: of Python, in the step of {PAGE_SIZE} with the least, and on average."
)


def decoding(num_seqs: int) -> tuple[Scheduler, StepPlan]:
    """num_seqs sequences that decode, and their next step."""
    per_seq = -(-(PROMPT_TOKENS + PAGE_SIZE + 1024) // PAGE_SIZE)
    config = SchedulerConfig(
        num_pages=num_seqs * per_seq,
        page_size=PAGE_SIZE,
        max_seqs=num_seqs,
        max_step_tokens=8192,
        max_model_len=PROMPT_TOKENS + PAGE_SIZE + 1024,
    )
    scheduler = Scheduler(config)
    for i in range(num_seqs):
        prompt = [(i * 7919 + j) % 30_000 for j in range(PROMPT_TOKENS + i % PAGE_SIZE)]
        promises = {"ttft_deadline_s": 1e6, "tpot_target_s": 1.0, "deadline_s": 1e6}
        scheduler.apply(Arrive(0.0, f"r{i}", prompt, 1000, frozenset([30_001]), tenant=f"t{i % 8}", **promises))
    plan = scheduler.plan(0.0)
    while plan is not None and plan.chunks:
        samples = len(plan.decode_rows) + sum(chunk.samples for chunk in plan.chunks)
        scheduler.apply(StepDone(0.0, plan.step, [5] * samples, ms=10.0))
        plan = scheduler.plan(0.0)
    if plan is None or len(plan.decode_rows) != num_seqs:
        raise RuntimeError("not every sequence came to decode")
    return scheduler, plan


def one_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> StepPlan:
    """Its result in, the next plan out."""
    t = plan.step * 0.01
    scheduler.apply(StepDone(t, plan.step, tokens, ms=10.0))
    following = scheduler.plan(t)
    if following is None:
        raise RuntimeError("nothing decodes any more")
    return following


def count_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> tuple[StepPlan, int, int]:
    """The next plan, the bytecodes run to get there, and the Python functions called."""
    counted = [0, 0]

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted[event == "call"] += event in ("opcode", "call")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        following = one_step(scheduler, plan, tokens)
    finally:
        sys.settrace(before)
    return following, counted[0], counted[1]


def measure(num_seqs: int) -> dict[str, float]:
    """A row of the table."""
    scheduler, plan = decoding(num_seqs)
    tokens = list(range(100, 100 + num_seqs))
    times = []
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
    return int(any(row["median_us"] > BUDGET_US.get(int(row["running"]), float("inf")) for row in rows))
