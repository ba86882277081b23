# SPDX-License-Identifier: Apache-2.0
"""python -m bench ops: cases of ops against peers and the measured roof."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import Progress

from bench import device, op_peers, ops, profile, report, roofline
from bench.cases import FAMILIES, BenchCase
from pagedserve.errors import BackendUnavailable, PagedServeError
from pagedserve.ops import backends_of, explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", nargs="*", help="names of pagedserve.ops (default: all)")
    parser.add_argument("--backend", default="cpu", help="a backend of the op (default: %(default)s)")
    parser.add_argument(
        "--grid",
        default="default",
        help="default, quick, or for attention a shape such as 32x4096-h32/8-d128-p16-bf16",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds this")
    parser.add_argument(
        "--peer",
        default="torch",
        metavar="NAMES",
        help="whom to time beside us: torch, another backend, flashinfer, fa3, some of them with commas, all, none",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where inputs stand (%(default)s)")
    parser.add_argument("--ncu", action="store_true", help="time nothing; print how Nsight Compute looks at the cases")
    parser.add_argument("--profile", action="store_true", help="run each case once in an NVTX range, for a profiler")
    parser.add_argument(
        "--dry-run", action="store_true", help="time nothing; print cases, what they cost, and launches"
    )
    parser.add_argument("--explain", action="store_true", help="time nothing; print which backends can run the cases")
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds a case (default: %(default)s)")
    parser.add_argument("--plot", action="store_true", help="save a plot of the shares of the roof")


def run(args: argparse.Namespace, console: Console) -> int:
    torch.set_num_threads(args.threads)
    os.environ["PAGEDSERVE_THREADS"] = str(args.threads)
    try:
        cases = list(ops.chosen(args.op or list(FAMILIES), args.grid, args.only))
        require_backend(args.backend, cases)
        if args.dry_run or args.explain:
            return untimed(cases, args, console)
        device.require(args.device)
    except (ValueError, PagedServeError) as error:
        console.print(f"[red]{error}[/red]")
        return 2
    if args.ncu or args.profile:
        return profile.run(cases, args, console)
    signature = report.sign(args.threads, "")
    roof = roofline.measure(args.threads, device=args.device)
    rows, refused = [], []
    with Progress(console=console, transient=True) as progress:
        for found in timed(progress.track(cases, description="timing"), args):  # type: ignore[arg-type]
            (refused if isinstance(found, str) else rows).append(found)
    roof = roof.best(roofline.measure(args.threads, device=args.device))
    roof = roof.with_read(ops.best_read(rows, roofline.read_bytes(args.device)))
    rows = [ops.under_roof(row, roof) for row in rows]
    console.print(roofline.describe(roof))
    if rows:
        place = signature["gpu"] if args.device == "cuda" else f"{signature['cpu']}, {args.threads} threads"
        report.show(rows, ops.columns(peers_of(cases, args)), title=place, console=console)
        console.print(ops.DEFINITIONS)
    for line in refused:
        console.print(f"[yellow]not run: {line}[/yellow]", highlight=False)
    for file in saved(rows, args, signature):
        console.print(f"wrote {file}")
    return 0 if rows else 1


def require_backend(backend: str, cases: Sequence[BenchCase]) -> None:
    """Raises BackendUnavailable where none of the cases' ops has it."""
    names = {case.op: backends_of(case.op) for case in cases}
    if names and not any(backend in known for known in names.values()):
        told = "; ".join(f"{op}: {', '.join(known)}" for op, known in names.items())
        raise BackendUnavailable(f"--backend {backend}: there is no such backend of these ops. There are, of {told}")


def untimed(cases: Sequence[BenchCase], args: argparse.Namespace, console: Console) -> int:
    """What would run. The inputs stand on the CPU, where a backend of GPUs tells by its twin for CPU tensors."""
    for case in cases:
        told = explain(case.op, case.make())
        console.print(f"[bold]{case.op} {case.name}[/bold]", highlight=False)
        if args.explain:
            console.print(str(told), highlight=False, markup=False, soft_wrap=True)
        if args.dry_run:
            lines = told.launches.get(args.backend) or told.launches.get(f"{args.backend}-interpreted") or ()
            console.print(f"  {told.flops:,} flops, {told.bytes:,} bytes; {ops.repro(case, args)}", highlight=False)
            for line in lines or (f"backend {args.backend!r} does not tell its launches",):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return 0


def timed(cases: Sequence[BenchCase], args: argparse.Namespace) -> Iterator[report.Row | str]:
    """A row for each case, or why it was not run."""
    for case in cases:
        try:
            row = ops.time_case(
                case,
                args.backend,
                peers=op_peers.parse(args.peer, case.op, args.backend),
                budget_s=args.budget_s,
                cold_bytes=0 if args.grid == "quick" else None,
                device=args.device,
            )
        except PagedServeError as error:
            yield f"{case.op} {case.name}: {error}"
        else:
            yield row | {"command": ops.repro(case, args)}


def peers_of(cases: Sequence[BenchCase], args: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in op_peers.parse(args.peer, case.op, args.backend)))


def saved(rows: Sequence[report.Row], args: argparse.Namespace, signature: report.Row) -> list[object]:
    """The files that rows and plot were written to."""
    sheet = report.Sheet("ops", signature)
    if not args.no_save:
        for row in rows:  # now, for a share of the roof takes the best of what was measured before, between and after
            sheet.add(row)
    files: list[object] = list(sheet.files)
    if args.plot and rows:
        bars = {f"{row['op']}\n{row['case']}": {args.backend: row["roof_percent"]} for row in rows}
        path = report.RESULTS / "ops.png"
        files.append(report.plot_bars(bars, path, title="Share of the measured roof", y_label="%", roof=100.0))
    return files
