# SPDX-License-Identifier: Apache-2.0
"""python -m pagedserve.emulate OP: runs a CUDA kernel on the CPU, under checks, and says what it found.

Exit code 0: all checks passed; 1: one found something; 2: the call, a compiler or a source is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedserve.emulate.build import launch_file
from pagedserve.emulate.change import Change, changed_tree, launch_files
from pagedserve.emulate.checks import BACKEND, CHECKS, NAMES, Subject, Verdict, judge_all
from pagedserve.errors import InvalidInput, PagedServeError
from pagedserve.ops import backends_of
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case

SHORT = {"bf16": "bfloat16", "f16": "float16", "fp16": "float16", "f32": "float32", "fp32": "float32"}
SHORT |= {"fp8": "float8_e4m3fn", "f8": "float8_e4m3fn", "i8": "int8", "i4": "int4"}
ATTENTION_FLAGS = ("sinks", "alibi_slopes", "tree_mask")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m pagedserve.emulate",
        description="Runs a CUDA kernel on the CPU, under checks, and says what it found.",
        epilog="checks: " + "; ".join(f"{check.name}: {check.asks}" for check in CHECKS),
    )
    add = made.add_argument
    add("op", help="an op with CUDA kernels, paged_decode for example")
    add("--check", default="all", help=f"all, or some of {','.join(NAMES)}")
    add("--source", action="append", default=[], metavar="[NAME=]FILE", help="a launch file in place of the tree's own")
    add(
        "--change",
        action="append",
        default=[],
        nargs=3,
        metavar=("FILE", "OLD", "NEW"),
        help="in a copy of csrc, NEW for OLD in FILE, which holds it once",
    )
    add("--define", action="append", default=[], metavar="NAME[=VALUE]", help="a macro to compile with")
    add("--ptx", default="", choices=("sm_80", "sm_90a"), help="run what nvcc makes of the kernel for an architecture")
    add("--seed", type=int, default=1, help="of inputs and of random orders")
    add("--case", help="a case of the op's spec by name, in place of the shape below; 'list' lists them")
    shape = made.add_argument_group("the shape of paged_decode")
    add = shape.add_argument
    add("--dtype", default="bf16", help="of queries, and of keys and values but for --kv-dtype")
    add("--kv-dtype", help="f32, bf16, f16, fp8, int8 or int4")
    add("--heads", default="32/8", metavar="Q/KV")
    add("--head-dim", type=int, default=128)
    add("--page-size", type=int, default=16)
    add("--kv-lens", default="300,17,0,129", help="tokens of each sequence")
    add("--q-len", type=int, default=1)
    add("--window", type=int)
    add("--soft-cap", type=float)
    for flag in ATTENTION_FLAGS:
        add(f"--{flag.replace('_', '-')}", action="store_true")
    return made


def numbers(text: str, option: str, separator: str) -> tuple[int, ...]:
    """ "32/8" or "300,17"."""
    try:
        return tuple(int(part) for part in text.split(separator))
    except ValueError:
        raise InvalidInput(f"{option} is {text!r}; give whole numbers with {separator!r} between them") from None


def shape_case(args: argparse.Namespace) -> Case:
    """The case that the options of paged_decode describe."""
    if args.op != "paged_decode":
        raise InvalidInput(f"shapes are given for paged_decode; for {args.op} choose a case: --case list shows them")
    heads, lens = numbers(args.heads, "--heads", "/"), numbers(args.kv_lens, "--kv-lens", ",")
    if len(heads) != 2 or min(heads) < 1 or heads[0] % heads[1]:
        raise InvalidInput(f"--heads is {args.heads!r}; give query heads and KV heads, the first a multiple: 32/8")
    if min(args.head_dim, args.page_size, args.q_len) < 1:
        raise InvalidInput("--head-dim, --page-size and --q-len are at least 1")
    dtype = SHORT.get(args.dtype, args.dtype)
    kv_dtype = SHORT.get(args.kv_dtype, args.kv_dtype) if args.kv_dtype else dtype
    for name in (dtype, kv_dtype):
        if name not in {*SHORT.values(), *SHORT}:
            raise InvalidInput(f"there is no dtype {name!r}; choose from {', '.join(SHORT)}")
    options: dict[str, object] = {flag: True for flag in ATTENTION_FLAGS if getattr(args, flag)}
    options |= {name: value for name in ("window", "soft_cap") if (value := getattr(args, name)) is not None}
    options |= {"q_len": args.q_len} if args.q_len > 1 else {}
    sizes = {"num_q_heads": heads[0], "num_kv_heads": heads[1], "head_dim": args.head_dim, "page_size": args.page_size}
    return Case("shape", sizes, {"q": dtype, "k_pages": kv_dtype}, options, lens, (args.q_len,) * len(lens))


def cases(args: argparse.Namespace) -> list[Case]:
    if args.case is None:
        return [shape_case(args)]
    found = [case for case in SPECS[args.op].cases() if args.case in (case.id, "all")]
    if not found:
        known = "\n  ".join(case.id for case in SPECS[args.op].cases())
        raise InvalidInput(f"{args.op} has no case {args.case!r}; choose 'all' or one of\n  {known}")
    return found


def sources(args: argparse.Namespace) -> dict[str, Path]:
    """Launch files by launcher, of a changed tree or one by one; a file without a name has that of its launcher."""
    changed = launch_files(changed_tree([Change(*words) for words in args.change])) if args.change else {}
    named = (text.partition("=") if "=" in text else (Path(text).stem, "", text) for text in args.source)
    found = {name: Path(file) for name, _, file in named}
    for name, file in found.items():
        launch_file(name)  # whose place it takes
        if not file.is_file():
            raise InvalidInput(f"--source: {file} is not a file")
    return changed | found


def chosen(text: str) -> tuple[str, ...]:
    if text == "all":
        return NAMES
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            raise InvalidInput(f"there is no check {name!r}; choose from all, {', '.join(NAMES)}")
    return names


def row(verdict: Verdict) -> str:
    word = "FOUND" if verdict.problems else "passed"
    lines = [f"{verdict.check.name:<8} {word:<7} {verdict.seconds:7.1f} s  {verdict.check.asks}"]
    for problem in verdict.problems:
        lines += ["    " + line for line in problem.splitlines()]
    return "\n".join(lines)


def work(counters: dict[str, Any]) -> str:
    """What a plain run did, in one line."""
    ideal = counters["matrix_load_wavefronts_ideal"]
    conflicts = counters["matrix_load_wavefronts"] / ideal if ideal else 1.0
    return (
        f"work     {counters['launches']} launches, {counters['blocks']} blocks, {counters['matrix_products']} matrix "
        f"products, {counters['async_copy_bytes']} bytes copied asynchronously, {counters['barriers']} waits at "
        f"barriers, {conflicts:.2f} times through the banks for each matrix load"
    )


def check_case(args: argparse.Namespace, case: Case, names: Sequence[str]) -> int:
    """Prints a row for each check; how many found something."""
    subject = Subject(args.op, make_inputs(args.op, case, args.seed), sources(args), tuple(args.define), args.ptx)
    found = 0
    for verdict in judge_all(subject, names, args.seed):
        print(row(verdict), flush=True)
        if verdict.check.name == "result" and verdict.counters:
            print(work(verdict.counters), flush=True)
        found += bool(verdict.problems)
    return found


def run(args: argparse.Namespace) -> int:
    if args.op not in SPECS or BACKEND not in backends_of(args.op):
        able = [op for op in SPECS if BACKEND in backends_of(op)]
        raise InvalidInput(f"{args.op!r} has no CUDA kernels; these have: {', '.join(able) or 'none'}")
    if args.case == "list":
        print("\n".join(case.id for case in SPECS[args.op].cases()))
        return 0
    names, found = chosen(args.check), 0
    for case in cases(args):
        print(f"{args.op}: {case.id if args.case else describe(case)}", flush=True)
        found += check_case(args, case, names)
    if found:
        print(f"{found} checks found something")
    else:
        print("correct, race-free, in bounds" if names == NAMES else f"nothing found by {', '.join(names)}")
    return 1 if found else 0


def describe(case: Case) -> str:
    """A case in words."""
    sizes = [f"{name} {size}" for name, size in case.sizes.items()]
    options = [f"{name} {value}" for name, value in case.options.items()]
    lens = "kv_lens " + ",".join(map(str, case.lens))
    return ", ".join([f"{name} {dtype}" for name, dtype in case.dtypes.items()] + sizes + [lens] + options)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return run(args)
    except PagedServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
