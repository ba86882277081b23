# SPDX-License-Identifier: Apache-2.0
"""The simulator beside the real engine: the same requests at the same times through both, and how far apart they are.

Step costs are fitted to calibrations before, between and after the runs of a workload, never to the workload itself. A
machine's speed drifts by more within a minute than a simulator should err, so runs are repeated and medians compared.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import report
from bench.fidelity_runs import MAX_SEQS, QUIET, Real, Run, await_quiet
from pagedserve.cli.rush_load import Call
from pagedserve.errors import PagedServeError
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.calibrate import MeasuredStep, fit
from pagedserve.simulate.cluster import simulate
from pagedserve.simulate.cost import StepLaw
from pagedserve.simulate.jitter import Jittered
from pagedserve.simulate.results import SERVED, Results, percentile
from pagedserve.simulate.workload import NO_SLO, Lengths, RateProfile, Request, lognormal, spike, steady

DRAWS = 16
COLUMNS = {
    "workload": "workload",
    "metric": "metric",
    "real": "real",
    "simulated": "simulated",
    "error_percent": "error %",
    "runs_off_percent": "real runs off %",
    "worst_run_percent": "the worst %",
    "paced_error_percent": "at their pace %",
    "self_error_percent": "fitted on itself %",
    "machine_off_percent": "machine +- %",
    "others_percent": "others %",
}
DEFINITIONS = """\
TTFT: first token - arrival. TPOT: (last token - first token) / (tokens - 1) of each request. E2E: last token - arrival.
Real times are taken where the caller stands, in several runs of the same arrivals; a figure is its median over the
runs, and over as many draws of the steps' scatter as are made where it is simulated. error: simulated / real - 1; cost,
scatter and what passes between caller and engine are taken from calibrations before, between and after the runs.
real runs off: how far a real run is from their median, the typical one and the worst: what nobody can know of a single
run. at their pace: the error, were the machine as fast in calibrations as it was, on the whole, in each of the runs.
fitted on itself: costs fitted to the workload's own steps; what error is left is not the cost's. machine: by how much
calibrations differed in speed, half of the range. others: had so much of the processors in the run they had most
of; where that was more than 2 %, the run did not count and was made again."""


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
    parser.add_argument("--workload", choices=["all", *(one.name for one in WORKLOADS)], default="all")
    parser.add_argument("--runs", type=int, default=4, help="of each workload (default: %(default)s)")
    parser.add_argument("--capacity", type=float, help="requests/s that loads are shares of (default: measured)")
    again = "of a run at most, while other programs disturb it (default: %(default)s)"
    parser.add_argument("--tries", type=int, default=5, help=again)
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


def compared(
    workload: str,
    real: Sequence[Results],
    guessed: Sequence[Results],
    paced: Sequence[Results],
    own: Sequence[Results],
    around_s: float,
) -> list[dict[str, Any]]:
    """A row for each figure, the median over runs. around_s: what calibrations say that passes outside the engine."""
    runs = [figures(results) for results in real]
    simulations = [[figures(results, around_s) for results in each] for each in (guessed, paced, own)]
    rows = []
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        truth = statistics.median(values)
        guess, at_pace, best = (statistics.median(each[metric] for each in of) for of in simulations)
        rows.append(
            {
                "bench": "fidelity",
                "workload": workload,
                "metric": metric,
                "real": truth,
                "simulated": guess,
                "error_percent": 100 * (guess / truth - 1),
                "paced_error_percent": 100 * (at_pace / truth - 1),
                "self_error_percent": 100 * (best / truth - 1),
                "runs": len(runs),
                "runs_off_percent": 100 * statistics.median(abs(value / truth - 1) for value in values),
                "worst_run_percent": 100 * max((value / truth - 1 for value in values), key=abs),
            }
        )
    return rows


def capacity_of(config: SchedulerConfig, cost: StepLaw) -> float:
    """Requests a second of the steady workload's sizes, by the fitted cost."""
    clock, workload = random.Random(0), WORKLOADS[0]
    lengths = [(workload.prompt(clock), workload.output(clock)) for _ in range(8 * MAX_SEQS)]
    crowd = [Request(0.0, range(i << 20, (i << 20) + p), o) for i, (p, o) in enumerate(lengths)]
    return len(crowd) / simulate(config, cost, crowd, promises=False).end_s


def run(args: argparse.Namespace, console: Console) -> int:
    """Calibrate and load in turn; print and keep a row for each figure of each workload."""
    from pagedserve.models import load_model

    command = f"python -m bench fidelity --seconds {args.seconds:g} --runs {args.runs} --workload {args.workload!r}"
    sheet = report.Sheet("fidelity", report.sign(args.threads, command))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False)

    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for made in measure(Real(load_model(args.model), Path(folder)), args, say):
                rows += made
                for row in made if not args.no_save else ():
                    sheet.add(row)
    except PagedServeError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    report.show(rows, COLUMNS, title="Simulated against real", console=console)
    console.print(DEFINITIONS, highlight=False)
    for file in sheet.files:
        console.print(f"wrote {file}")
    return 0


def measure(real: Real, args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each workload: calibrations and runs in turn."""
    real.calibrate(args.seed, [2])  # the first run touches memory, and is not counted
    say("calibrating")
    first = undisturbed(partial(real.calibrate, args.seed), args.tries)
    capacity = args.capacity or capacity_of(first.config, fit(first.steps).cost)
    for index, workload in enumerate(WORKLOADS):
        if args.workload not in ("all", workload.name):
            continue
        profile, calls = calls_of(workload, capacity, args.seconds, real.model.config.vocab_size, args.seed + index)
        calibrations, runs = [first], list[Run]()
        for number in range(args.runs):
            say(f"{workload.name}: {len(calls)} requests, capacity {capacity:.3g} requests/s")
            runs.append(undisturbed(partial(real.load, profile, calls), args.tries))
            say("calibrating")
            seed = args.seed + 100 * (index + 1) + number
            calibrations.append(undisturbed(partial(real.calibrate, seed), args.tries))
        first = calibrations[-1]
        around_s = statistics.fmean(run.around_s for run in calibrations)
        paces = paces_of(calibrations, calibrations)
        guessed, own = draws(calibrations, calls), draws(runs, calls)
        paced = draws(calibrations, calls, paces_of(runs, calibrations))
        rows = compared(workload.name, [run.results for run in runs if run.results], guessed, paced, own, around_s)
        machine = {
            "machine_off_percent": 100 * (max(paces) - min(paces)) / 2,
            "others_percent": 100 * max(run.others_share for run in calibrations + runs),
            "capacity_per_s": capacity,
        }
        yield [row | machine for row in rows]


def undisturbed(run: Callable[[], Run], tries: int) -> Run:
    """The first of so many tries of which others had little; what came out has no say in whether it counts.

    Raises:
        PagedServeError: others had the processors in all of them.
    """
    for _ in range(tries):
        await_quiet()
        made = run()
        if not made.others_share > QUIET:
            return made
    raise PagedServeError(
        f"other programs had {made.others_share:.0%} of the processors in the last of {tries} runs, and "
        f"{QUIET:.0%} at most is supported: end them, or give more --tries"
    )


def draws(runs: Sequence[Run], calls: Sequence[Call], paces: Sequence[float] = (1.0,)) -> list[Results]:
    """Simulated on the cost of these runs' steps, times each pace, with DRAWS draws of their scatter."""
    cost = fit(_steps(runs)).cost
    made = []
    for pace in paces:
        steps = [(step.shape, pace * step.period_ms) for step in _steps(runs)]
        made += [simulated(runs[0].config, Jittered(cost, steps, seed=seed), calls) for seed in range(DRAWS)]
    return made


def paces_of(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """How slow the machine was in each run, beside all of base together."""
    cost = fit(_steps(base)).cost
    return [sum(s.period_ms for s in run.steps) / sum(cost.ms(s.shape) for s in run.steps) for run in runs]


def _steps(runs: Sequence[Run]) -> list[MeasuredStep]:
    return [step for run in runs for step in run.steps]
