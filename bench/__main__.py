# SPDX-License-Identifier: Apache-2.0
"""python -m bench: `ops` times kernels against peers and the measured roof, `serve` loads the engine and its peers,
`gates` holds CUDA kernels to their budgets, `explain` predicts from their machine code, `gpu` does everything that
needs a GPU, `fidelity` sets the simulator beside the real engine, `simulator` times it and sets its admission beside
oracles, `scheduler` counts the scheduler's own work per step."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console


def parser() -> argparse.ArgumentParser:
    from bench import explain, fidelity, gates, gpu, ops_command, scheduler, serve, simulator

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=cores, help="threads for every library (default: %(default)s)")
    common.add_argument("--no-save", action="store_true", help="print only; write nothing under bench/results")
    ops_command.add_arguments(commands.add_parser("ops", parents=[common], help="ops against peers and the roof"))
    serve.add_arguments(commands.add_parser("serve", parents=[common], help="load on the engine and its peers"))
    gates.add_arguments(commands.add_parser("gates", help="registers, spills and instructions of the CUDA kernels"))
    explain.add_arguments(
        commands.add_parser("explain", help="what a decode can reach on a GPU, from its machine code")
    )
    gpu.add_arguments(commands.add_parser("gpu", help="everything that needs a GPU, in order of value"))
    fidelity.add_arguments(commands.add_parser("fidelity", parents=[common], help="the simulator beside the engine"))
    words = "the scheduler's time and counted work per step"
    scheduler.add_arguments(commands.add_parser("scheduler", parents=[common], help=words))
    words = "the simulator's speed, and admission beside oracles"
    simulator.add_arguments(commands.add_parser("simulator", parents=[common], help=words))
    return top


def main(words: Sequence[str] | None = None) -> int:
    from bench import explain, fidelity, gates, gpu, ops_command, scheduler, serve, simulator

    args = parser().parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 180)  # a file has room for whole rows
    runs = {"ops": ops_command.run, "serve": serve.run, "gates": gates.run, "gpu": gpu.run, "fidelity": fidelity.run}
    runs |= {"scheduler": scheduler.run, "simulator": simulator.run, "explain": explain.run}
    try:
        return runs[args.command](args, console)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
