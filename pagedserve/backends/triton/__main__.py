# SPDX-License-Identifier: Apache-2.0
"""python -m pagedserve.backends.triton: `compile` a model's kernels ahead of time, or `tune` a GPU's configurations."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pagedserve.backends.triton import compile_only, trials, tune
from pagedserve.backends.triton.catalogue import OPS, ModelShape
from pagedserve.errors import InvalidInput, PagedServeError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m pagedserve.backends.triton", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    ahead = commands.add_parser("compile", help="fill Triton's cache; needs no GPU")
    ahead.add_argument("--arch", type=int, default=90, help="compute capability, as 80 or 90 (default: %(default)s)")
    ahead.add_argument("--op", action="append", default=[], choices=tuple(OPS), help="default: every op")
    ahead.add_argument(
        "--shape",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help=f"of the model: {', '.join(entry.name for entry in fields(ModelShape))} (features with commas)",
    )
    ahead.add_argument("--cache", help="folder to fill (default: Triton's, which TRITON_CACHE_DIR sets)")
    ahead.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    best = commands.add_parser("tune", help="time configurations on this GPU and write its architecture's table")
    best.add_argument("--op", action="append", default=[], choices=tuple(tune.SEARCHED), help="default: every op")
    best.add_argument("--out", type=Path, help="the table to write (default: the one that is read)")
    best.add_argument("--list", action="store_true", help="only print what would be timed; needs no GPU")
    return top


def shape_of(words: Sequence[str]) -> ModelShape:
    """A model's shape, of KEY=VALUE words."""
    kinds = {entry.name: type(entry.default) for entry in fields(ModelShape)}
    given: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in kinds or not equals:
            raise InvalidInput(f"--shape takes KEY=VALUE with KEY one of {', '.join(kinds)}; got {word!r}")
        if kinds[key] is int and not value.isdecimal():
            raise InvalidInput(f"{key} is {value!r}; give a whole number")
        given[key] = int(value) if kinds[key] is int else tuple(value.split(",")) if kinds[key] is tuple else value
    return ModelShape(**given)  # type: ignore[arg-type]


def run_compile(args: argparse.Namespace) -> int:
    shape = shape_of(args.shape)
    jobs = [compile_only.Job(args.arch, shape, op, args.cache) for op in args.op or OPS]
    found = compile_only.compile_jobs(jobs, args.workers)
    for each in found:
        print(
            f"{each.job.op:14} {each.kernel:22} sm_{args.arch}  {each.registers:3} registers, "
            f"{each.spilled_bytes} bytes spilled, {each.shared_bytes:6} bytes shared"
        )
    return 0


def run_tune(args: argparse.Namespace) -> int:
    wanted = [trial for trial in trials.TRIALS if not args.op or trial.op in args.op]
    if args.list:
        for trial in wanted:
            print(f"{trial.op:14} {trial.name}: {len(list(tune.candidates(trial.op)))} configurations")
        return 0
    arch, table = trials.tune_here(wanted)
    path = args.out or Path(__file__).parent / "configs" / f"sm_{arch}.json"
    tune.write_table(table, path)
    print(f"wrote {path}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    try:
        return run_compile(args) if args.command == "compile" else run_tune(args)
    except PagedServeError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
