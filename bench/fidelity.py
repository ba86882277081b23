# SPDX-License-Identifier: Apache-2.0
"""The simulator beside the real engine: the same requests at the same times through both, and how far apart they are.

Step costs are fitted to calibration runs before and after each workload, never to the workload itself, so that what is
compared was not fitted on, and a machine whose speed drifts is met half way.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from pagedserve.cli.rush_load import Call, Rush, run_rush
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.calibrate import Fit, MeasuredStep, fit, read_steps
from pagedserve.simulate.cluster import simulate
from pagedserve.simulate.cost import StepLaw
from pagedserve.simulate.results import SERVED, Results, percentile
from pagedserve.simulate.workload import NO_SLO, Lengths, RateProfile, Request, lognormal, spike, steady

MAX_SEQS, MAX_STEP_TOKENS = 32, 256
STEADY = 0.03
GROUPS = (1, 2, 4, 8, 16, 24, 32)  # requests at once, of a calibration
COLUMNS = {
    "workload": "workload",
    "metric": "metric",
    "real": "real",
    "simulated": "simulated",
    "error_percent": "error %",
    "self_error_percent": "fitted on itself %",
    "drift_percent": "machine's drift %",
}
DEFINITIONS = """\
TTFT: first token - arrival. TPOT: (last token - first token) / (tokens - 1) of each request. E2E: last token - arrival.
Real times are taken where the caller stands. error: simulated / real - 1, costs fitted to calibrations before and after
the workload, as is what passes between caller and engine. fitted on itself: costs fitted to the workload's own steps;
what error is left is not the cost's. machine's drift: how much slower calibration steps were after the workload than
before it; the steadiest run of a few counts."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals as shares of the measured capacity."""

    name: str
    profile: Callable[[float, float], RateProfile]  # of the capacity in requests a second, and the duration
    burstiness: float
    prompt: Lengths
    output: Lengths


WORKLOADS = (
    Workload("steady", lambda c, s: steady(0.7 * c, s), 1.0, lognormal(128, 0.5, 512), lognormal(40, 0.6, 160)),
    Workload(
        "spike",
        lambda c, s: spike(0.4 * c, 6.0, at_s=0.3 * s, length_s=0.15 * s, duration_s=s),
        1.0,
        lognormal(128, 0.5, 512),
        lognormal(40, 0.6, 160),
    ),
    Workload(
        "bursts of long prompts",
        lambda c, s: steady(0.3 * c, s),
        0.3,
        lognormal(300, 0.7, 1200),
        lognormal(30, 0.8, 160),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a GGUF file, or a packaged model's name")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, each workload (default: %(default)s)")
    least = "runs of a workload at most, until the machine stays as fast as it was (default: %(default)s)"
    parser.add_argument("--tries", type=int, default=3, help=least)
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and lengths (default: %(default)s)")


def calls_of(
    workload: Workload, capacity: float, seconds: float, vocab_size: int, seed: int
) -> tuple[RateProfile, list[Call]]:
    """A workload's requests, with prompts of random tokens."""
    profile, clock = workload.profile(capacity, seconds), random.Random(seed)
    calls = []
    for number, due_s in enumerate(profile.arrivals(seed, workload.burstiness)):
        prompt = [clock.randrange(1, vocab_size) for _ in range(workload.prompt(clock))]
        calls.append(Call(number, prompt, workload.output(clock), due_s, first_due_s=due_s))
    return profile, calls


def calibration(vocab_size: int, seed: int, sizes: Sequence[int]) -> list[list[Call]]:
    """Groups of requests that are sent at once, each when the one before is answered."""
    clock, number, groups = random.Random(seed), 0, []
    for size in sizes:
        group = []
        for _ in range(size):
            prompt = [clock.randrange(1, vocab_size) for _ in range(clock.randrange(16, 400))]
            group.append(Call(number, prompt, clock.randrange(12, 40), 0.0))
            number += 1
        groups.append(group)
    return groups


def simulated(config: SchedulerConfig, cost: StepLaw, calls: Sequence[Call]) -> Results:
    """What the simulator makes of calls that came when they were due."""
    requests = (Request(call.due_s, call.prompt, call.max_tokens, NO_SLO) for call in calls)
    return simulate(config, cost, requests, promises=False)


def figures(results: Results, around_s: float = 0.0) -> dict[str, float]:
    """Waits in milliseconds of all that were served, and the time until the last was, in seconds.

    Args:
        around_s: what waits outside the engine add to the results.
    """
    served = [i for i, end in enumerate(results.ends) if end in SERVED]
    rows: dict[str, float] = {}
    for name, column in (("TTFT", results.ttfts), ("TPOT", results.tpots), ("E2E", results.totals)):
        own_s = 0.0 if name == "TPOT" else around_s
        values = [(column[i] + own_s) * 1e3 for i in served if not math.isnan(column[i])]
        rows[f"{name} mean, ms"] = statistics.fmean(values) if values else math.nan
        rows[f"{name} p50, ms"] = percentile(values, 50)
        rows[f"{name} p99, ms"] = percentile(values, 99)
    rows["until all are answered, s"] = max((results.arrivals[i] + results.totals[i] for i in served), default=math.nan)
    return rows


def compared(workload: str, real: Results, guessed: Results, own: Results, around_s: float) -> list[dict[str, Any]]:
    """A row for each figure. around_s: what calibrations say that passes outside the engine."""
    rows = []
    for (metric, truth), guess, best in zip(
        figures(real).items(), figures(guessed, around_s).values(), figures(own, around_s).values(), strict=True
    ):
        rows.append(
            {
                "bench": "fidelity",
                "workload": workload,
                "metric": metric,
                "real": truth,
                "simulated": guess,
                "error_percent": 100 * (guess / truth - 1),
                "self_error_percent": 100 * (best / truth - 1),
            }
        )
    return rows


class Real:
    """Runs calls on the real engine, an engine for each run, and reads its steps from its log."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._num_runs = 0

    def calibrate(self, seed: int, sizes: Sequence[int] = GROUPS) -> tuple[list[MeasuredStep], list[float]]:
        """Steps of every size, and the seconds that each request spent around the engine."""
        groups = calibration(self.model.config.vocab_size, seed, sizes)

        async def run(engine: Any) -> None:
            for group in groups:
                rush = Rush("calibration", False, NO_SLO, steady(1.0, 1e-3), group)
                await run_rush(engine, rush, _params, drain_s=600.0, changed=lambda: None)

        steps = self._run(run)[1]
        return steps, [call.around_s for group in groups for call in group if call.around_s is not None]

    def load(self, profile: RateProfile, calls: list[Call]) -> tuple[SchedulerConfig, list[MeasuredStep], Results]:
        """A workload to its end."""
        rush = Rush("workload", False, NO_SLO, profile, calls)

        async def run(engine: Any) -> None:
            await run_rush(engine, rush, _params, drain_s=600.0, changed=lambda: None)

        return *self._run(run), rush.results()

    def _run(self, run: Callable[[Any], Any]) -> tuple[SchedulerConfig, list[MeasuredStep]]:
        from pagedserve import AsyncEngine

        self._num_runs += 1
        log = self._folder / f"{self._num_runs}.log"

        async def main() -> None:
            options = {"max_seqs": MAX_SEQS, "max_step_tokens": MAX_STEP_TOKENS, "max_model_len": 2048}
            async with AsyncEngine(self.model, event_log=log, **options) as engine:
                await run(engine)

        asyncio.run(main())
        return read_steps(log)


def _params(call: Call) -> Any:
    from pagedserve import SamplingParams

    return SamplingParams(max_tokens=call.max_tokens, temperature=0.0, ignore_eos=True, cache_salt=str(call.number))


def capacity_of(config: SchedulerConfig, cost: StepLaw) -> float:
    """Requests a second of the steady workload's sizes, by the fitted cost."""
    clock, workload = random.Random(0), WORKLOADS[0]
    lengths = [(workload.prompt(clock), workload.output(clock)) for _ in range(8 * MAX_SEQS)]
    crowd = [Request(0.0, range(i << 20, (i << 20) + p), o) for i, (p, o) in enumerate(lengths)]
    return len(crowd) / simulate(config, cost, crowd, promises=False).end_s


def run(args: argparse.Namespace, console: Console) -> int:
    """Calibrate and load in turn; print and keep a row for each figure of each workload."""
    from pagedserve.errors import PagedServeError
    from pagedserve.models import load_model

    sheet = report.Sheet("fidelity", report.sign(args.threads, f"python -m bench fidelity --seconds {args.seconds:g}"))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False)

    try:
        with tempfile.TemporaryDirectory() as folder:
            real = Real(load_model(args.model), Path(folder))
            rows, fits = _measure(real, args, say)
    except PagedServeError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    for row in rows:
        if not args.no_save:
            sheet.add(row)
    report.show(rows, COLUMNS, title="Simulated against real", console=console)
    console.print(DEFINITIONS, highlight=False)
    for workload, fitted in zip(WORKLOADS, fits, strict=True):
        console.print(f"{workload.name}: cost of {fitted.num_steps} steps, median error {fitted.median_error:.1%}")
    for file in sheet.files:
        console.print(f"wrote {file}")
    return 0


def drift(before: Sequence[MeasuredStep], after: Sequence[MeasuredStep], fitted: Fit) -> float:
    """How much slower the machine was after than before, relative: steps beside what they cost on average."""
    slow = [sum(s.period_ms for s in steps) / sum(fitted.cost.ms(s.shape) for s in steps) for steps in (before, after)]
    return slow[1] / slow[0] - 1.0


def _measure(
    real: Real, args: argparse.Namespace, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[Fit]]:
    """A workload during which the machine's speed changed is run again; the rows of the steadiest run count."""
    rows: list[dict[str, Any]] = []
    fits: list[Fit] = []
    vocab_size = real.model.config.vocab_size
    say("calibrating")
    real.calibrate(args.seed, [2])  # the first run touches memory, and is not counted
    before = real.calibrate(args.seed)
    config = SchedulerConfig(
        num_pages=4096, page_size=16, max_seqs=MAX_SEQS, max_step_tokens=MAX_STEP_TOKENS, max_model_len=2048
    )
    capacity = capacity_of(config, fit(before[0]).cost)
    for index, workload in enumerate(WORKLOADS):
        profile, calls = calls_of(workload, capacity, args.seconds, vocab_size, args.seed + index)
        tries: list[tuple[float, Fit, list[dict[str, Any]]]] = []
        while len(tries) < args.tries and not any(abs(off) <= STEADY for off, _, _ in tries):
            say(f"{workload.name}: {len(calls)} requests, capacity {capacity:.3g} requests/s")
            config, own, results = real.load(profile, [replace(call, token_ids=[]) for call in calls])
            say("calibrating")
            after = real.calibrate(args.seed + 1 + index)
            fitted, around_s = fit(before[0] + after[0]), statistics.median(before[1] + after[1])
            guessed, itself = simulated(config, fitted.cost, calls), simulated(config, fit(own).cost, calls)
            off = drift(before[0], after[0], fitted)
            made = compared(workload.name, results, guessed, itself, around_s)
            tries.append((off, fitted, [row | {"drift_percent": 100 * off} for row in made]))
            before = after
        _, fitted, steadiest = min(tries, key=lambda one: abs(one[0]))
        rows += steadiest
        fits.append(fitted)
    return rows, fits
