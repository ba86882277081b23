# SPDX-License-Identifier: Apache-2.0
"""The simulator beside the real engine: the same requests at the same times through both, and how far apart they are.

Step costs are fitted to calibrations that take turns with the runs of a workload, never to the workload itself. Runs
differ by more than a simulator should err, and a percentile hangs on a few arrivals, so each run has arrivals of its
own and means are compared.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console

from bench import report
from bench.fidelity_runs import MAX_SEQS, QUIET, Real, Run, await_quiet
from pagedserve.cli.rush_load import Call
from pagedserve.errors import PagedServeError
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.calibrate import Fit, MeasuredStep, fit, paced
from pagedserve.simulate.cluster import simulate
from pagedserve.simulate.cost import StepLaw, steps_in_a_row
from pagedserve.simulate.results import SERVED, Results, percentile
from pagedserve.simulate.workload import NO_SLO, Lengths, RateProfile, Request, lognormal, spike, steady

DRAWS = 16
NEARBY_S = tuple((place + 0.5) / 8 - 1 for place in range(DRAWS))  # within a second, in which a machine's mood lasts
RESAMPLED = 200
Runs = TypeVar("Runs", bound=tuple[Run, ...])
COLUMNS = {
    "workload": "workload",
    "metric": "metric",
    "real": "real",
    "simulated": "simulated",
    "error_percent": "error %",
    "unsure_percent": "+- %",
    "runs_off_percent": "real runs off %",
    "worst_run_percent": "the worst %",
    "self_error_percent": "fitted on itself %",
    "machine_off_percent": "machine +- %",
    "others_percent": "others %",
}
DEFINITIONS = """\
TTFT: first token - arrival. TPOT: (last token - first token) / (tokens - 1) of each request. E2E: last token - arrival.
Real times are taken where the caller stands, in several runs of other arrivals each; a figure is its mean over them.
With each run an engine of its own computes a calibration: crowds of 2 to 32 users one after the other, who ask other
prompts and pause. The two take turns of a step or a few, the other's clock standing still, so that both have the
machine at one pace. Cost, and what passes between caller and engine, are taken from all calibrations, and the machine's
pace, second by second, from the one beside the run: a run is simulated 16 times, begun within a second of it. error:
simulated / real - 1; +-: its standard deviation, had other runs of the same kind been made (bootstrap). real runs off:
how far a real run is from their mean, the typical one and the worst: what nobody can know of a single run. fitted on
itself: on the cost and the paces of the run's own steps, begun at 16 of its moments; what error is left is not the
cost's. machine: by how much calibrations differed in pace, half of the range. others: had so much of the processors in
the run they had most of; where that was more than 2 %, the run did not count and was made again."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals as shares of the measured capacity."""

    name: str
    profile: Callable[[float, float], RateProfile]  # of the capacity in requests a second, and the duration
    burstiness: float
    prompt: Lengths
    output: Lengths


class Measured(NamedTuple):
    """A run of a workload, the calibration that took turns with it, and the run's requests."""

    run: Run
    beside: Run
    calls: Sequence[Call]


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
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals, each workload (default: %(default)s)")
    parser.add_argument("--workload", choices=["all", *(one.name for one in WORKLOADS)], default="all")
    parser.add_argument("--runs", type=int, default=6, help="of each workload (default: %(default)s)")
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
    real: Sequence[Mapping[str, float]],
    guessed: Sequence[Sequence[Mapping[str, float]]],
    own: Sequence[Sequence[Mapping[str, float]]],
) -> list[dict[str, Any]]:
    """A row for each figure: of each run, of simulations at its pace, and of such on its own steps."""
    clock = random.Random(0)
    resampled = [clock.choices(range(len(real)), k=len(real)) for _ in range(RESAMPLED)]
    rows = []
    for metric in real[0]:
        values = [figure[metric] for figure in real]
        guesses, best = ([[figure[metric] for figure in run] for run in of] for of in (guessed, own))

        def error(of: list[list[float]], runs: Iterable[int] = range(len(real)), values: list[float] = values) -> float:
            of_these = [value for run in runs for value in of[run]]
            return 100 * (statistics.fmean(of_these) / statistics.fmean(values[run] for run in runs) - 1)

        truth = statistics.fmean(values)
        rows.append(
            {
                "bench": "fidelity",
                "workload": workload,
                "metric": metric,
                "real": truth,
                "simulated": truth * (1 + error(guesses) / 100),
                "error_percent": error(guesses),
                "unsure_percent": statistics.pstdev(error(guesses, runs) for runs in resampled),
                "self_error_percent": error(best),
                "runs": len(real),
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

    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(Real(load_model(args.model), Path(folder)), args, say)
    except PagedServeError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    for row in rows if not args.no_save else ():
        sheet.add(row)
    report.show(rows, COLUMNS, title="Simulated against real", console=console)
    console.print(DEFINITIONS, highlight=False)
    for file in sheet.files:
        console.print(f"wrote {file}")
    return 0


def measure(real: Real, args: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of each workload: runs of all in turn, each of them in turns with a calibration."""
    real.calibrate(args.seed, [(2, 1)])  # the first run touches memory, and is not counted
    capacity = args.capacity
    if capacity is None:
        say("calibrating")
        (alone,) = undisturbed(partial(real.calibrate, args.seed), args.tries)
        capacity = capacity_of(alone.config, fit(alone.steps).cost)
    loads = []
    for index, workload in enumerate(WORKLOADS):
        if args.workload in ("all", workload.name):
            loads.append((index, workload, list[Measured]()))
    say(f"loads are shares of {capacity:.3g} requests a second")
    for number in range(args.runs):
        for index, workload, measured in loads:
            seed = args.seed + 1 + 100 * (len(WORKLOADS) * number + index)
            profile, calls = calls_of(workload, capacity, args.seconds, real.model.config.vocab_size, seed)
            say(f"run {number + 1} of {args.runs}, {workload.name}: {len(calls)} requests, in turns with a calibration")
            measured.append(Measured(*undisturbed(partial(real.load, profile, calls, seed), args.tries), calls))
    say("simulating")
    calibrations = [one.beside for _, _, measured in loads for one in measured]
    fitted = fit(levelled(calibrations))
    rows = [row for _, workload, measured in loads for row in rows_of(workload.name, measured, calibrations, fitted)]
    return [row | {"capacity_per_s": capacity} for row in rows]


def rows_of(
    workload: str, measured: Sequence[Measured], calibrations: Sequence[Run], fitted: Fit
) -> list[dict[str, Any]]:
    """Rows for these runs, given all calibrations and their cost."""
    around_s = statistics.fmean(run.around_s for run in calibrations if not math.isnan(run.around_s))
    guessed, own = [], []
    for run, beside, calls in measured:
        meanwhile = [step for step in beside.steps if step.t >= run.began_s]
        made = draws(run.config, fitted, meanwhile, NEARBY_S, calls, clock_s=run.began_s)
        guessed.append([figures(results, around_s) for results in made])
        anywhere = [place / DRAWS * sum(step.period_ms for step in run.steps) / 1e3 for place in range(DRAWS)]
        made = draws(run.config, fit(run.steps), run.steps, anywhere, calls)
        own.append([figures(results, around_s) for results in made])
    real = [figures(one.run.results) for one in measured if one.run.results]
    paces = paces_of([one.beside for one in measured], calibrations)
    machine = {
        "machine_off_percent": 100 * (max(paces) - min(paces)) / 2,
        "others_percent": 100 * max(one.run.others_share for one in measured),
    }
    return [row | machine for row in compared(workload, real, guessed, own)]


def undisturbed(run: Callable[[], Runs], tries: int) -> Runs:
    """The first of so many tries of which others had little; what came out has no say in whether it counts.

    Raises:
        PagedServeError: others had the processors in all of them.
    """
    for _ in range(tries):
        await_quiet()
        made = run()
        if not made[0].others_share > QUIET:
            return made
    raise PagedServeError(
        f"other programs had {made[0].others_share:.0%} of the processors in the last of {tries} runs, and "
        f"{QUIET:.0%} at most is supported: end them, or give more --tries"
    )


def draws(
    config: SchedulerConfig,
    fitted: Fit,
    steps: Sequence[MeasuredStep],
    begins_s: Iterable[float],
    calls: Sequence[Call],
    clock_s: float | None = None,
) -> list[Results]:
    """Simulated on a cost, at the paces of these steps, beginning at each of these moments of theirs; clock_s: as
    paced."""
    return [simulated(config, paced(fitted, steps, begin_s=at_s, clock_s=clock_s), calls) for at_s in begins_s]


def paces_of(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """How slow the machine was in each run, beside all of base together."""
    together = [step for run in base for step in run.steps]
    cost = fit(together).cost

    def pace(steps: Sequence[MeasuredStep]) -> float:
        return sum(step.period_ms for step in steps) / sum(steps_in_a_row(cost, (step.shape for step in steps)))

    return [pace(run.steps) / pace(together) for run in runs]


def levelled(runs: Sequence[Run]) -> list[MeasuredStep]:
    """All steps of these runs, had the machine had the same pace in each."""
    paces = paces_of(runs, runs)
    return [
        replace(step, period_ms=step.period_ms / pace)
        for run, pace in zip(runs, paces, strict=True)
        for step in run.steps
    ]
