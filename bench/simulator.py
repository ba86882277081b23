# SPDX-License-Identifier: Apache-2.0
"""The simulator's own speed, and admission in it beside oracles.

Step costs are a data sheet's. All that is measured is the time that simulating takes, on one core of this machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench import report
from pagedserve.simulate import hardware, oracle
from pagedserve.simulate.balancing import RoundRobin
from pagedserve.simulate.capacity import Planner, Traffic
from pagedserve.simulate.cluster import Cluster, simulate
from pagedserve.simulate.workload import RateProfile, Request, Slo, fixed, requests, spike, steady

DAY_S, REPLICAS = 86_400.0, 50
COLUMNS = {
    "what": "what",
    "requests": "requests",
    "steps": "steps",
    "cpu_s": "CPU s",
    "kept_percent": "on time, % of all",
    "oracle_percent": "oracle's",
    "kept_of_served_percent": "of the served",
    "unbounded_percent": "unbounded queue's",
}
DEFINITIONS = """\
On time: first token within 1 s, tokens 50 ms apart at most, of all arrivals. oracle: the better of the best queue bound
in hindsight and of a queue that knows how fast it will drain. The machine: llama-3-8b on an H200 by its data sheet."""


def at_once(machine: hardware.Machine, planner: Planner) -> dict[str, Any]:
    """10,000 users within one second on one replica."""
    crowd = requests(steady(10_000, 1.0).arrivals(0), fixed(512), fixed(128))
    began = time.process_time()
    results = simulate(planner.config, machine.cost, crowd)
    took_s = time.process_time() - began
    return {"what": "10,000 users in one second", "requests": len(results), "steps": results.steps, "cpu_s": took_s}


def beside_oracle(name: str, profile: RateProfile, machine: hardware.Machine, planner: Planner) -> dict[str, Any]:
    """A load that is too much, with promises, without, and as an oracle would have admitted it."""

    def stream() -> Iterator[Request]:
        return planner.traffic.stream(profile, planner.config.max_model_len // 2)

    began = time.process_time()
    found = oracle.compare(planner.config, machine.cost, stream)
    return {
        "what": name,
        "requests": found.promised.arrivals,
        "cpu_s": time.process_time() - began,
        "kept_percent": 100 * found.promised.kept_share,
        "oracle_percent": 100 * found.oracle,
        "kept_of_served_percent": 100 * found.promised.kept_of_served,
        "unbounded_percent": 100 * found.unbounded.kept_share,
    }


def day(count: int, machine: hardware.Machine, traffic: Traffic, told: Callable[[int], None]) -> dict[str, Any]:
    """So many requests, evenly over a day, on REPLICAS in turn; their schedulers know the machine's prices."""
    planner = Planner(machine, traffic)
    known = replace(planner.config.prices, uncertainty=0.0)
    cluster = Cluster(
        replace(planner.config, prices=known),
        machine.cost,
        num_replicas=REPLICAS,
        balancer=RoundRobin(),
        progress=lambda t, number: told(number),
    )
    began = time.process_time()
    profile = steady(count / DAY_S, DAY_S)
    results = cluster.run(traffic.stream(profile, planner.config.max_model_len // 2))
    return {
        "what": f"a day on {REPLICAS} replicas, {traffic.prompt_mean:g} + {traffic.output_mean:g} tokens, prices known",
        "requests": len(results),
        "steps": results.steps,
        "cpu_s": time.process_time() - began,
        "kept_percent": 100 * results.summary().kept_share,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--day", type=int, default=0, metavar="N", help="N requests over a day on 50 replicas, too")
    parser.add_argument("--output-tokens", type=float, default=211.0, help="of the day's requests (default: 211)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Simulate, print and keep a row for each; 1 where admission is 3 points or more behind the oracle, or late."""
    machine = hardware.roofline(hardware.find_model("llama-3-8b"), hardware.find_gpu("h200"))
    slo = Slo(ttft_s=1.0, tpot_s=0.05)
    planner = Planner(machine, Traffic(10_000, 60.0, slo))
    rows = [at_once(machine, planner)]
    capacity = planner.replica_rate()
    loads = {
        "1.3x of what one replica serves, 60 s": steady(1.3 * capacity, 60.0),
        "10x for 20 s": spike(0.5 * capacity, 10.0, at_s=10.0, length_s=20.0, duration_s=60.0),
    }
    rows += [beside_oracle(name, profile, machine, planner) for name, profile in loads.items()]
    judged = rows[1:]
    if args.day:
        with Progress(console=console) as progress:
            task = progress.add_task("a day", total=args.day)
            traffic = Traffic(args.day, DAY_S, slo, output_mean=args.output_tokens)
            rows.append(day(args.day, machine, traffic, lambda number: progress.update(task, completed=number)))
    report.show(rows, COLUMNS, title="The simulator", console=console)
    console.print(DEFINITIONS, highlight=False)
    if not args.no_save:
        sheet = report.Sheet("simulator", report.sign(args.threads, "python -m bench simulator"))
        for row in rows:
            sheet.add({"bench": "simulator", **row})
        for file in sheet.files:
            console.print(f"wrote {file}")
    late = any(row["kept_of_served_percent"] < 99 for row in judged)
    return int(late or any(row["oracle_percent"] - row["kept_percent"] >= 3 for row in judged))
