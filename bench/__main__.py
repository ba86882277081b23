# SPDX-License-Identifier: Apache-2.0
"""python -m bench: `ops` times kernels against torch and the measured roof, `serve` loads the engine and its peers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from bench import report


def parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=cores, help="threads for every library (default: %(default)s)")
    common.add_argument("--no-save", action="store_true", help="print only; write nothing under bench/results")

    ops = commands.add_parser("ops", parents=[common], help="ops against torch and the measured roof")
    ops.add_argument("op", nargs="*", help="names of pagedserve.ops (default: all)")
    ops.add_argument("--backend", default="cpu", help="a backend of the op (default: %(default)s)")
    ops.add_argument(
        "--grid",
        default="default",
        help="default, quick, or for attention a shape such as 32x4096-h32/8-d128-p16-bf16",
    )
    ops.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds this")
    ops.add_argument("--peer", choices=("torch", "none"), default="torch", help="whom to time beside us")
    ops.add_argument("--budget-s", type=float, default=2.0, help="seconds a case (default: %(default)s)")
    ops.add_argument("--plot", action="store_true", help="save a plot of the shares of the roof")

    from bench import serve

    serve.add_arguments(commands.add_parser("serve", parents=[common], help="load on the engine and its peers"))
    return top


def run_ops(args: argparse.Namespace, console: Console) -> int:
    import torch

    from bench import ops, roofline
    from bench.cases import FAMILIES
    from pagedserve.errors import PagedServeError

    torch.set_num_threads(args.threads)
    os.environ["PAGEDSERVE_THREADS"] = str(args.threads)
    try:
        cases = list(ops.chosen(args.op or list(FAMILIES), args.grid, args.only))
    except ValueError as error:
        console.print(f"[red]{error}[/red]")
        return 2
    roof = roofline.measure(args.threads)
    signature = report.sign(args.threads, "")
    cold_bytes = 0 if args.grid == "quick" else None
    rows, refused = [], []
    with Progress(console=console, transient=True) as progress:
        for case in progress.track(cases, description="timing"):
            try:
                row = ops.time_case(
                    case,
                    args.backend,
                    with_torch=args.peer == "torch",
                    budget_s=args.budget_s,
                    cold_bytes=cold_bytes,
                )
            except PagedServeError as error:
                refused.append(f"{case.op} {case.name}: {error}")
                continue
            rows.append(row | {"command": ops.repro(case, args.backend, args.peer, args.threads, args.grid)})
    roof = roof.best(roofline.measure(args.threads))
    rows = [ops.under_roof(row, roof) for row in rows]
    console.print(roofline.describe(roof))
    if rows:
        report.show(rows, ops.COLUMNS, title=f"{signature['cpu']}, {args.threads} threads", console=console)
        console.print(ops.DEFINITIONS)
    for line in refused:
        console.print(f"[yellow]not run: {line}[/yellow]", highlight=False)
    sheet = report.Sheet("ops", signature)
    if not args.no_save:
        for row in rows:  # now, for a share of the roof takes the best of what was measured before and after
            sheet.add(row)
    files = sheet.files
    if args.plot and rows:
        bars = {f"{row['op']}\n{row['case']}": {args.backend: row["roof_percent"]} for row in rows}
        files.append(
            report.plot_bars(
                bars, report.RESULTS / "ops.png", title="Share of the measured roof", y_label="%", roof=100.0
            )
        )
    for file in files:
        console.print(f"wrote {file}")
    return 0 if rows else 1


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 180)  # a file has room for whole rows
    if args.command == "ops":
        return run_ops(args, console)
    from bench import serve

    return serve.run(args, console)


if __name__ == "__main__":
    sys.exit(main())
