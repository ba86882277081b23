# SPDX-License-Identifier: Apache-2.0
"""`pagedserve plan`: what a crowd needs, what a spike does to it, when to add hardware, and what it costs."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagedserve.cli.console import Console, duration
from pagedserve.cli.saved import finite, picture_place, save_json
from pagedserve.cli.slo import describe, parse_slo, seconds
from pagedserve.errors import InvalidInput
from pagedserve.simulate import hardware
from pagedserve.simulate.calibrate import machine_from_log
from pagedserve.simulate.capacity import (
    ON_TIME,
    POLICIES,
    SPIKE_S,
    Lead,
    Planner,
    Question,
    Scenario,
    Traffic,
    answers,
    cost_per_million,
    lead_times,
)
from pagedserve.simulate.results import Spread

MOST_SPIKE = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is shown."""

    planner: Planner
    replica_rate: float
    needed: int
    steady: Scenario
    spikes: tuple[Scenario, Scenario]  # promises on, unbounded
    at_once: tuple[Scenario, Scenario]  # one replica, all
    climbs: tuple[Scenario, ...]
    leads: tuple[Lead, ...]


def run(args: argparse.Namespace) -> int:
    """Simulate, print, save."""
    for name in ("price", "spike", "prompt_tokens", "output_tokens"):
        if not 1e-9 <= getattr(args, name) < math.inf:
            raise InvalidInput(f"--{name.replace('_', '-')} is {getattr(args, name)}; give a finite number above 0")
    if args.spike > MOST_SPIKE:
        raise InvalidInput(f"--spike is {args.spike:g}; give a factor up to {MOST_SPIKE:,}: every request is simulated")
    slo = parse_slo(args.slo)
    traffic = Traffic(
        args.users,
        seconds(args.every),
        slo,
        prompt_mean=args.prompt_tokens,
        output_mean=args.output_tokens,
        seed=args.seed,
    )
    start_s = seconds(args.start)
    processes = args.processes or min(4, os.cpu_count() or 1)
    machine = _machine(args)
    out = picture_place(args.out, "the .json is")
    console = Console(to_stderr=args.json)
    began = time.monotonic()
    line = ""

    def told(text: str) -> None:
        nonlocal line
        line = text
        changed()

    with console.live(lambda: line, lambda: line) as changed:
        plan = _simulate(Planner(machine, traffic, told), args.spike, start_s, processes)
    numbers = _numbers(plan, args, start_s)
    if args.json:
        print(json.dumps(finite(numbers)))
    else:
        _show(plan, args, start_s, console)
    _save(plan, numbers, out, console)
    workers = "one core" if processes == 1 else f"at most {processes} cores"
    console.print(f"simulated in {duration(time.monotonic() - began)} on {workers}")
    return 0


def _machine(args: argparse.Namespace) -> hardware.Machine:
    if args.steps is not None:
        return machine_from_log(args.steps)
    if Path(args.model).is_dir():
        model = hardware.with_weights(shape_of(Path(args.model)), args.weights)
    else:
        model = hardware.find_model(args.model, args.weights)
    return hardware.roofline(model, hardware.find_gpu(args.gpu))


def shape_of(folder: Path) -> hardware.ModelShape:
    """A Hugging Face folder's model."""
    models = importlib.import_module("pagedserve.models.config_huggingface")
    config = models.from_huggingface(models.read_json(folder / "config.json"))
    return hardware.ModelShape(
        folder.name,
        config.num_layers,
        config.hidden_size,
        config.num_q_heads,
        config.num_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.context_length,
        source=str(folder / "config.json"),
    )


def _simulate(planner: Planner, factor: float, start_s: float, processes: int) -> Plan:
    rate = planner.replica_rate()
    needed, steady = planner.replicas_for_all(rate)
    spikes: list[Question] = [
        ("spiked", {"needed": needed, "factor": factor, "promises": promises}) for promises in (True, False)
    ]
    climbs: list[Question] = [("climb", {"replica_rate": rate, "start_s": start_s, "name": name}) for name in POLICIES]
    at_once: list[Question] = [("at_once", {"replicas": replicas}) for replicas in (1, needed)]
    on, off, *climbed, one, all_of_them = answers(planner, [*spikes, *climbs, *at_once], processes)
    leads = tuple(lead_times(start_s))
    return Plan(planner, rate, needed, steady, (on, off), (one, all_of_them), tuple(climbed), leads)


def _show(plan: Plan, args: argparse.Namespace, start_s: float, console: Console) -> None:
    planner, traffic, rate = plan.planner, plan.planner.traffic, plan.replica_rate
    rows = [[c.name, f"{c.value:,.4g} {c.unit}".strip(), c.kind, c.source] for c in planner.machine.constants]
    rows += [
        ["users", f"{traffic.users:,}, each every {duration(traffic.every_s)}", "asked for", "--users, --every"],
        ["prompt tokens", f"{traffic.prompt_mean:,.0f} mean, lognormal", "asked for", "--prompt-tokens"],
        ["output tokens", f"{traffic.output_mean:,.0f} mean, lognormal", "asked for", "--output-tokens"],
        ["start of a replica", duration(start_s), "assumed", "--start: measure yours"],
        ["price of a replica", f"{args.price:g} an hour", "assumed", "--price: yours"],
        [
            "step at most",
            f"{planner.config.max_step_tokens:,} tokens",
            "chosen",
            "70 % of the TPOT target, without context",
        ],
        ["running at once, at most", f"{planner.config.max_seqs:,} requests", "chosen", "max_seqs of each replica"],
    ]
    console.table(f"{planner.machine.name}: what this plan rests on", ["", "value", "kind", "source"], rows)
    console.print(f"Promise: {describe(traffic.slo)}. Nothing here is measured on a GPU unless its kind says so.")

    needed = f"{plan.needed} {'replica' if plan.needed == 1 else 'replicas'}"
    console.heading(
        f"{traffic.users:,} users ({traffic.rate:,.1f} requests/s) need {needed}: one serves "
        f"{rate:.3g} requests/s with {ON_TIME:.0%} in time"
    )
    scenarios = [
        (f"steady, {needed}", plan.steady),
        (f"{args.spike:g}x for {SPIKE_S:.0f} s, promises on", plan.spikes[0]),
        (f"{args.spike:g}x for {SPIKE_S:.0f} s, unbounded queue", plan.spikes[1]),
        (f"all {traffic.users:,} in one second, 1 replica", plan.at_once[0]),
        (f"all in one second, {needed}", plan.at_once[1]),
        *((f"climb to 3.6x, {scenario.name}", scenario) for scenario in plan.climbs),
    ]
    columns = [
        "",
        "in time, of all",
        "of the served",
        "TTFT p50 / p99",
        "TPOT p99",
        "sent away",
        "Retry-After p50",
        "drained after",
    ]
    console.table("What happens", columns, [_row(name, scenario) for name, scenario in scenarios])
    console.print(
        "In time: first token, gaps and end as promised; of all arrivals, those sent away included. "
        "Drained: from the end of arrivals to the last answer."
    )
    console.table(
        "When to add a replica, and how early",
        ["the load doubles in", "ask at a utilisation of", "that is before they are full"],
        [[duration(lead.double_s), f"{lead.utilisation:.0%}", duration(lead.lead_s)] for lead in plan.leads],
    )
    full, now = _cost(plan, args.price)
    console.print(
        f"Cost of a million tokens, prompts and output: {full:.3g} with replicas full, {now:.3g} at this load; of a "
        f"million output tokens alone: {full * _tokens(plan) / traffic.output_mean:.3g}"
    )


def _row(name: str, scenario: Scenario) -> list[str]:
    summary = scenario.results.summary()
    return [
        name,
        f"{summary.kept_share:.1%}" if summary.arrivals else "nobody came",
        f"{summary.kept_of_served:.1%}" if summary.served else "-",
        f"{duration(summary.ttft_s.p50)} / {duration(summary.ttft_s.p99)}",
        duration(summary.tpot_s.p99),
        f"{sum(summary.refused.values()) / summary.arrivals:.1%}" if summary.arrivals else "-",
        duration(summary.retry_after_s.p50),
        duration(scenario.drained_s),
    ]


def _tokens(plan: Plan) -> float:
    """Of a request."""
    return plan.planner.traffic.prompt_mean + plan.planner.traffic.output_mean


def _cost(plan: Plan, price: float) -> tuple[float, float]:
    """Of a million tokens: replicas full, and with this traffic on the replicas it needs."""
    tokens = _tokens(plan)
    now = plan.planner.traffic.rate / plan.needed
    return cost_per_million(price, plan.replica_rate, tokens), cost_per_million(price, now, tokens)


def _numbers(plan: Plan, args: argparse.Namespace, start_s: float) -> dict[str, Any]:
    """Every number behind tables and plots; None for what never happened."""
    planner, traffic = plan.planner, plan.planner.traffic
    full, now = _cost(plan, args.price)
    return {
        "planned_for": planner.machine.name,
        "constants": [asdict(constant) for constant in planner.machine.constants],
        "traffic": asdict(traffic),
        "start_s": start_s,
        "spike": {"factor": args.spike, "length_s": SPIKE_S},
        "max_step_tokens": planner.config.max_step_tokens,
        "max_seqs": planner.config.max_seqs,
        "replica_requests_per_s": plan.replica_rate,
        "replicas": plan.needed,
        "steady": _scenario(plan.steady),
        "spike_promises": _scenario(plan.spikes[0]),
        "spike_unbounded": _scenario(plan.spikes[1]),
        "at_once_one_replica": _scenario(plan.at_once[0]),
        "at_once_all_replicas": _scenario(plan.at_once[1]),
        "climb": [_scenario(scenario) for scenario in plan.climbs],
        "add_replica": [asdict(lead) | {"utilisation": lead.utilisation} for lead in plan.leads],
        "cost_per_million_tokens": {"full": full, "at_this_load": now, "price_per_hour": args.price},
    }


def _scenario(scenario: Scenario) -> dict[str, Any]:
    results, summary = scenario.results, scenario.results.summary()

    def spread(values: Spread) -> dict[str, float]:
        return asdict(values)

    return {
        "name": scenario.name,
        "simulated_replicas": scenario.replicas,
        "arrivals": summary.arrivals,
        "in_time_share": summary.kept_share,
        "in_time_of_served": summary.kept_of_served,
        "goodput_per_s": summary.goodput_per_s,
        "refused": dict(summary.refused),
        "ttft_s": spread(summary.ttft_s),
        "tpot_s": spread(summary.tpot_s),
        "retry_after_s": spread(summary.retry_after_s),
        "drained_s": scenario.drained_s,
        "replica_s": results.replica_s,
        "timeline": [asdict(sample) for sample in results.samples],
    }


def _save(plan: Plan, numbers: dict[str, Any], out: Path, console: Console) -> None:
    try:
        save_json(out.with_suffix(".json"), numbers)
        console.print(f"Every number: {out.with_suffix('.json')}")
        from pagedserve.cli.plan_plot import save_plot

        on, off = plan.spikes
        title = f"{plan.planner.traffic.users:,} users on {plan.planner.machine.name}, {plan.needed} replicas"
        save_plot(out, on, off, plan.climbs, title)
        console.print(f"The plot:     {out}")
    except ImportError as error:
        console.print(f"No plot: {error}. To have one: pip install 'pagedserve[plot]'")
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written ({error}); give another path with --out") from None
    sys.stdout.flush()
