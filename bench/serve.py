# SPDX-License-Identifier: Apache-2.0
"""The same requests for our engine and its peers, each in a process of its own, in turn."""

from __future__ import annotations

import argparse
import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import drift, metrics, report
from bench.peers import PEERS, US, Peer, chosen
from bench.peers.protocol import PeerError, PeerProcess
from bench.prompts import Prompts, closed, open_loop, tokens_of
from bench.workload import Request

DEFAULT_WORKLOADS = (
    "closed:1x128+64",
    "closed:8x128+64",
    "closed:32x128+64",
    "closed:64x128+64",
    "closed:32x1024+64",
    "closed:32x1024+256",  # long enough for all to decode at once, once every prompt is through
    "open:2x128+64",
    "open:4x128+64",
)
WORKLOAD = re.compile(r"(closed|open):(\d+(?:\.\d+)?)x(\d+)\+(\d+)")
COLUMNS = {
    "engine": "engine",
    "precision": "precision",
    "prompt_tok_per_s": "prompt tok/s",
    "decode_tok_per_s": "decode tok/s",
    "decode_context": "context",
    "output_tok_per_s": "output tok/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "p99",
    "tpot_p50_ms": "TPOT p50 ms",
    "tpot_p99_ms": "p99",
    "drift_kl": "drift KL",
    "agrees_percent": "agrees %",
}


@dataclass(frozen=True)
class Workload:
    """ "closed:USERSxPROMPT+GENERATE" or "open:RATExPROMPT+GENERATE", RATE in requests a second."""

    text: str
    is_closed: bool
    amount: float
    prompt_len: int
    max_tokens: int

    @staticmethod
    def parse(text: str) -> Workload:
        match = WORKLOAD.fullmatch(text)
        if match is None or float(match.group(2)) <= 0 or not int(match.group(3)) or not int(match.group(4)):
            raise ValueError(
                f"{text!r} is no workload; write closed:USERSxPROMPT+GENERATE or open:RATExPROMPT+GENERATE"
            )
        is_closed = match.group(1) == "closed"
        if is_closed and "." in match.group(2):
            raise ValueError(f"{text!r}: users are whole")
        return Workload(text, is_closed, float(match.group(2)), int(match.group(3)), int(match.group(4)))

    def requests(self, prompts: Prompts, *, rounds: int, open_s: float, seed: int) -> list[Request]:
        """Closed: rounds requests a user. Open: Poisson arrivals for open_s seconds, one at least."""
        if self.is_closed:
            return closed(prompts, int(self.amount), rounds, self.prompt_len, self.max_tokens)
        clock = random.Random(seed)
        arrivals_s = [0.0]
        while (later_s := arrivals_s[-1] + clock.expovariate(self.amount)) < open_s:
            arrivals_s.append(later_s)
        return open_loop(prompts, arrivals_s, self.prompt_len, self.max_tokens)


@dataclass
class Contender:
    """A loaded engine, and what it says about itself."""

    name: str
    process: PeerProcess
    facts: Mapping[str, Any]
    drift: dict[str, float | None] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a GGUF file, or a packaged model's name")
    parser.add_argument("--peers", default="installed", help="installed, none, or NAME[:VARIANT],... (%(default)s)")
    parser.add_argument("--variant", default=US.variants[0], choices=US.variants, help="our weights (%(default)s)")
    parser.add_argument("--workload", action="append", metavar="KIND:AMOUNTxPROMPT+GENERATE", help="may be given again")
    parser.add_argument("--rounds", type=int, default=2, help="requests a user sends (default: %(default)s)")
    parser.add_argument("--open-s", type=float, default=20.0, help="seconds of arrivals (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="of everything, engines in turn (default: %(default)s)")
    parser.add_argument("--plot", action="store_true", help="save a plot of the output rates")
    parser.add_argument("--no-drift", action="store_true", help="do not compare with float32")


def start(peer: Peer, variant: str, model: str, threads: int) -> Contender:
    """A loaded engine.

    Raises:
        PeerError: it cannot load the model; its process is ended.
    """
    python = peer.python()
    if python is None:
        raise PeerError(f"{peer.name} is not installed: {peer.install}")
    process = PeerProcess(python, peer.adapter, threads)
    try:
        facts = process.load(model, threads, variant)
    except PeerError:
        process.close()
        raise
    return Contender(f"{peer.name} {facts['version']}", process, facts)


def run_workload(
    contenders: Sequence[Contender], workload: Workload, prompts: Prompts, args: argparse.Namespace, repeat: int
) -> Iterator[report.Row]:
    """One row per engine, as each is done; all get the same requests. One that fails says so in its row and goes on."""
    requests = workload.requests(prompts, rounds=args.rounds, open_s=args.open_s, seed=repeat)
    for contender in contenders:
        row: report.Row = {
            "bench": "serve",
            "workload": workload.text,
            "repeat": repeat,
            "engine": contender.name,
            "precision": contender.facts["precision"],
        }
        try:
            records = contender.process.run(requests)
            row |= metrics.figures(records, closed=workload.is_closed)
        except PeerError as error:
            row["error"] = str(error)
        yield {**row, **contender.drift}


def measure_drift(contenders: Sequence[Contender], windows: Sequence[Sequence[int]], model: str, threads: int) -> str:
    """Fills in every engine's drift; returns whose is missing, and why."""
    try:
        exact = start(PEERS["transformers"], "f32", model, threads)
    except PeerError as error:
        return f"no drift: {error}"
    try:
        logits = [exact.process.logits(window) for window in windows]
    except PeerError as error:
        return f"no drift: {error}"
    finally:
        exact.process.close()
    problems = []
    for contender in contenders:
        try:
            contender.drift = drift.measure(contender.process, logits, windows)
        except PeerError as error:
            problems.append(f"no drift of {contender.name}: {error}")
    return "\n".join(problems)


def warm_up(contenders: Sequence[Contender], prompts: Prompts) -> list[Contender]:
    """Those that answer two small requests; the others are closed."""
    ready = []
    for contender in contenders:
        try:
            contender.process.run(closed(prompts, 2, 1, 32, 8))
            ready.append(contender)
        except PeerError:
            contender.process.close()
    return ready


def medians(rows: Sequence[report.Row]) -> list[report.Row]:
    """One row per engine and workload: the median of each figure over the repeats that have it."""
    groups: dict[tuple[str, str], list[report.Row]] = {}
    for row in rows:
        groups.setdefault((row["workload"], row["engine"]), []).append(row)
    result = []
    for group in groups.values():
        merged = dict(group[0])
        for key in COLUMNS:
            values = [row[key] for row in group if isinstance(row.get(key), float)]
            if values:
                merged[key] = float(numpy.median(values))
        result.append(merged)
    return result


def command_of(args: argparse.Namespace, workloads: Sequence[Workload]) -> str:
    words = ["python", "-m", "bench", "serve", "--model", args.model, "--peers", args.peers, "--variant", args.variant]
    words += [word for workload in workloads for word in ("--workload", workload.text)]
    words += ["--rounds", str(args.rounds), "--open-s", str(args.open_s), "--repeats", str(args.repeats)]
    return shlex.join([*words, "--threads", str(args.threads)])


def run(args: argparse.Namespace, console: Console) -> int:
    from pagedserve.errors import PagedServeError
    from pagedserve.models.load import find_model

    try:
        workloads = [Workload.parse(text) for text in args.workload or DEFAULT_WORKLOADS]
        peers, missing = chosen(args.peers)
        model = args.model if args.model.endswith(".gguf") else str(find_model(args.model))
        tokens = tokens_of(model)
    except (ValueError, PagedServeError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    for peer in missing:
        console.print(f"not installed: {peer.name}. Set it up with: {peer.install}", highlight=False)
    contenders: list[Contender] = []
    try:
        for peer, variant in [(US, args.variant), *peers]:
            console.print(f"loading {peer.name} ...", highlight=False)
            try:
                contenders.append(start(peer, variant, model, args.threads))
            except PeerError as error:
                console.print(f"[yellow]left out: {error}[/yellow]", highlight=False)
        return _measure(contenders, workloads, Prompts(tokens), model, args, console)
    finally:
        for contender in contenders:
            contender.process.close()


def _measure(
    contenders: list[Contender],
    workloads: Sequence[Workload],
    prompts: Prompts,
    model: str,
    args: argparse.Namespace,
    console: Console,
) -> int:
    signature = report.sign(args.threads, command_of(args, workloads))
    if not args.no_drift:
        windows = [prompts.deal(256) for _ in range(3)]
        problem = measure_drift(contenders, windows, model, args.threads)
        if problem:
            console.print(f"[yellow]{problem}[/yellow]", highlight=False)
    contenders = warm_up(contenders, prompts)
    sheet = report.Sheet("serve", signature)
    rows: list[report.Row] = []
    was_stopped = False
    try:
        for row in measured(contenders, workloads, prompts, args, console):
            rows.append(row)
            if not args.no_save:
                sheet.add(row)
    except KeyboardInterrupt:
        was_stopped = True
        console.print(f"stopped; {len(rows)} rows were measured")
    for workload in workloads:
        mine = [row for row in medians(rows) if row["workload"] == workload.text]
        if not mine:
            continue
        title = f"{workload.text} on {signature['cpu']}, {args.threads} threads"
        report.show(mine, COLUMNS, title=title, console=console)
    console.print(metrics.DEFINITIONS + "\n" + drift.DEFINITIONS)
    files = sheet.files
    if files and args.plot:
        files.append(_plot(medians(rows), files[0].with_suffix(".png"), signature["cpu"]))
    for file in files:
        console.print(f"wrote {file}")
    return 130 if was_stopped else 0 if rows else 1


def measured(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    prompts: Prompts,
    args: argparse.Namespace,
    console: Console,
) -> Iterator[report.Row]:
    """The rows of a whole run, each as it comes, with a line on the terminal and a bar of those to come."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("", total=args.repeats * len(workloads) * len(contenders))
        for repeat in range(args.repeats):
            for workload in workloads:
                progress.update(bar, description=workload.text)
                for row in run_workload(contenders, workload, prompts, args, repeat):
                    progress.advance(bar)
                    console.print(line_of(row), highlight=False, markup=False)
                    yield row


def line_of(row: report.Row) -> str:
    """A row's figures in one line, or its error."""
    figures = [
        f"{report.text_of(row[key])} {COLUMNS[key]}"
        for key in ("prompt_tok_per_s", "decode_tok_per_s", "output_tok_per_s")
        if row.get(key) is not None
    ]
    return f"{row['workload']}  {row['engine']}: {row.get('error') or ', '.join(figures)}"


def _plot(rows: Sequence[report.Row], path: Path, machine: str) -> Path:
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if "output_tok_per_s" in row:
            groups.setdefault(row["workload"], {})[row["engine"]] = row["output_tok_per_s"]
    return report.plot_bars(groups, path, title=f"Output tokens a second on {machine}", y_label="tokens / s")
