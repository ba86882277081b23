# SPDX-License-Identifier: Apache-2.0
"""python -m bench gates: compiles every launch file for every architecture and holds it to its budget. No GPU."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import report
from bench.gates_table import ALWAYS_FORBIDDEN, ARCHS, FILES, KERNELS, FileBudget, KernelBudget
from bench.sass import Kernel, read_kernels, tool
from pagedserve.errors import BackendUnavailable

LAUNCH = report.ROOT / "csrc" / "launch"
BUILD = report.ROOT / "build" / "gates"
SPILL = re.compile(r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", re.S)
COLUMNS = {
    "kernel": "kernel",
    "arch": "arch",
    "registers": "registers",
    "spill_bytes": "spills",
    "stack_bytes": "stack",
    "shared_bytes": "shared",
    "blocks": "blocks/SM",
    "warps_percent": "occupancy %",
    "instructions": "instructions",
    "key": "key instructions",
    "budget": "budget",
    "passes": "pass",
}
FILE_COLUMNS = {
    "file": "launch file",
    "arch": "arch",
    "kernels": "kernels",
    "compile_s": "compile s",
    "cubin_bytes": "cubin bytes",
    "budget": "budget",
    "passes": "pass",
}


@dataclass(frozen=True)
class Compiled:
    """A launch file for one architecture."""

    file: str
    arch: str
    cubin: Path
    compile_s: float
    spills: dict[str, int]


def compile_file(source: Path, arch: str, build: Path = BUILD, flags: Sequence[str] = ()) -> Compiled:
    """The cubin of a launch file, made anew where it or a file that it includes has changed; other flags need another
    folder.

    Raises:
        BackendUnavailable: there is no nvcc, or the file does not compile.
    """
    folder = build / arch
    folder.mkdir(parents=True, exist_ok=True)
    cubin, listed, facts = (folder / f"{source.stem}.{ending}" for ending in ("cubin", "d", "json"))
    if is_fresh(cubin, listed, facts):
        known = json.loads(facts.read_text())
        return Compiled(source.name, arch, cubin, known["compile_s"], known["spills"])
    target = f"-gencode=arch=compute_{arch[3:]},code={arch}"
    before = os.times()
    words = [tool("nvcc"), *setup_flags(), *flags, "-Xptxas=-v", target, "-cubin", "-MD", "-MF", str(listed)]
    done = subprocess.run([*words, "-o", str(cubin), str(source)], capture_output=True, text=True)
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    if done.returncode:
        raise BackendUnavailable(f"nvcc does not compile {source.name} for {arch}:\n{done.stderr.strip()}")
    spills = {name: int(stores) + int(loads) for name, stores, loads in SPILL.findall(done.stderr)}
    facts.write_text(json.dumps({"compile_s": seconds, "spills": spills}))
    return Compiled(source.name, arch, cubin, seconds, spills)


def setup_flags(setup: Path = report.ROOT / "setup.py") -> list[str]:
    """NVCC of setup.py, so that what is judged is what is built; but for what makes a spill fail there."""
    flags: list[str] = []
    for node in ast.parse(setup.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "NVCC":
            flags += ast.literal_eval(node.value)
    return [flag for flag in flags if "warn-on-spills" not in flag]


def is_fresh(cubin: Path, listed: Path, facts: Path) -> bool:
    if not (cubin.exists() and listed.exists() and facts.exists()):
        return False
    made_from = listed.read_text().replace("\\\n", "").partition(":")[2].split()
    age = cubin.stat().st_mtime
    return all(Path(name).exists() and Path(name).stat().st_mtime <= age for name in made_from)


def budget_of(kernel: Kernel, budgets: Sequence[KernelBudget] = KERNELS) -> KernelBudget | None:
    fits = (row for row in budgets if kernel.arch in row.archs and re.search(row.kernel, kernel.name))
    return next(fits, None)


def faults(kernel: Kernel, spill_bytes: int, budget: KernelBudget | None) -> list[str]:
    """What a kernel does beyond its budget, in words; nothing where it passes."""
    if budget is None:
        return ["no budget: add a row to KERNELS in bench/gates_table.py"]
    found = []
    limits = (
        ("registers", kernel.registers, budget.registers),
        ("spill bytes", spill_bytes, 0),
        ("stack bytes", kernel.stack_bytes, 0),
        ("shared bytes", kernel.shared_bytes, budget.shared_bytes),
    )
    found += [f"{value} {name}, allowed {limit}" for name, value, limit in limits if value > limit]
    blocks = kernel.blocks_per_sm(kernel.max_threads or 1024, budget.dynamic_shared_bytes)
    if blocks < budget.blocks:
        found.append(f"{blocks} blocks per SM, wanted {budget.blocks}")
    for pattern, least in budget.required.items():
        if kernel.count(pattern) < least:
            found.append(f"{kernel.count(pattern)} of {pattern}, wanted {least}")
    for pattern in (*ALWAYS_FORBIDDEN, *budget.forbidden):
        if kernel.count(pattern):
            found.append(f"{kernel.count(pattern)} of {pattern}, which is forbidden")
    return found


def kernel_row(kernel: Kernel, spill_bytes: int) -> report.Row:
    budget = budget_of(kernel)
    found = faults(kernel, spill_bytes, budget)
    threads = kernel.max_threads or 1024
    blocks = kernel.blocks_per_sm(threads, budget.dynamic_shared_bytes if budget else 0)
    patterns = budget.required if budget else {}
    return {
        "kernel": short_name(kernel.name),
        "arch": kernel.arch,
        "registers": kernel.registers,
        "spill_bytes": spill_bytes,
        "stack_bytes": kernel.stack_bytes,
        "shared_bytes": kernel.shared_bytes + (budget.dynamic_shared_bytes if budget else 0),
        "blocks": blocks,
        "warps_percent": 100 * blocks * -(-threads // 32) // 64,
        "instructions": len(kernel.instructions),
        "key": ", ".join(f"{readable(pattern)} {kernel.count(pattern)}" for pattern in patterns),
        "budget": f"{budget.registers} registers, {budget.blocks} blocks" if budget else "none",
        "passes": "yes" if not found else "no: " + "; ".join(found),
    }


@functools.cache
def enumerators() -> dict[str, str]:
    """Values of params.h's DType, as C++ names write them -> as people do."""
    body = re.search(r"enum class DType[^{]*\{(.*?)\}", (report.ROOT / "csrc" / "params.h").read_text(), re.S)
    pairs = re.findall(r"k(\w+)\s*=\s*(\d+)", body[1] if body else "")
    return {f"(pagedserve::DType){value}": name.lower() for name, value in pairs}


def short_name(name: str) -> str:
    """A kernel's name without its namespace and arguments."""
    for value, word in enumerators().items():
        name = name.replace(value, word)
    name = re.sub(r"\b(?:void|pagedserve::(?:\w+::)*)\s*", "", name)
    depth = 0
    for place, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            return name[:place]
    return name


def readable(pattern: str) -> str:
    """A pattern of opcodes as people write it: LDG.128."""
    return re.sub(r"\\\.E\\S\*|\\", "", pattern)


def file_row(compiled: Compiled, num_kernels: int, budget: FileBudget | None) -> report.Row:
    size = compiled.cubin.stat().st_size
    found = []
    if budget is None:
        found.append("no budget: add a row to FILES in bench/gates_table.py")
    else:
        if compiled.compile_s > budget.compile_s:
            found.append(f"{compiled.compile_s:.1f} s of processor time to compile, allowed {budget.compile_s:.0f}")
        if size > budget.cubin_bytes:
            found.append(f"{size} bytes, allowed {budget.cubin_bytes}")
    return {
        "file": compiled.file,
        "arch": compiled.arch,
        "kernels": num_kernels,
        "compile_s": compiled.compile_s,
        "cubin_bytes": size,
        "budget": f"{budget.compile_s:.0f} s, {budget.cubin_bytes} bytes" if budget else "none",
        "passes": "yes" if not found else "no: " + "; ".join(found),
    }


def judge(archs: Sequence[str], only: str = "", launch: Path = LAUNCH) -> tuple[list[report.Row], list[report.Row]]:
    """Rows of kernels and rows of launch files.

    Raises:
        BackendUnavailable: nvcc or cuobjdump is missing, or a file does not compile.
    """
    kernels, files = [], []
    for source in sorted(launch.glob("*.cu")):
        if only not in source.name:
            continue
        for arch in archs:
            compiled = compile_file(source, arch)
            found = read_kernels(compiled.cubin, arch)
            kernels += [kernel_row(kernel, compiled.spills.get(kernel.symbol, 0)) for kernel in found]
            files.append(file_row(compiled, len(found), FILES.get(source.name)))
    return kernels, files


def judge_library(library: Path, archs: Sequence[str]) -> list[report.Row]:
    """Rows of the kernels in a library that setup.py built; what spills does not build."""
    return [kernel_row(kernel, 0) for arch in archs for kernel in read_kernels(library, arch)]


def built_library() -> Path | None:
    """The CUDA library of this checkout."""
    return next(iter(sorted((report.ROOT / "pagedserve").glob("_cuda*.so"))), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default=",".join(ARCHS), help="architectures (default: %(default)s)")
    parser.add_argument("--built", action="store_true", help="judge the library that setup.py built; compile nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only launch files whose name holds this")


def judged(args: argparse.Namespace) -> tuple[list[report.Row], list[report.Row]]:
    archs = args.arch.split(",")
    if not args.built:
        return judge(archs, args.only)
    library = built_library()
    if library is None:
        raise BackendUnavailable("no CUDA library is built here: run `python setup.py build_ext --inplace` with nvcc")
    return judge_library(library, archs), []


def run(args: argparse.Namespace, console: Console) -> int:
    try:
        kernels, files = judged(args)
    except BackendUnavailable as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    if not kernels:
        console.print(f"no kernels: {LAUNCH} holds no launch file whose name holds {args.only!r}")
        return 1
    report.show(kernels, COLUMNS, title="Kernels", console=console)
    if files:
        report.show(files, FILE_COLUMNS, title="Launch files", console=console)
    failed = sum(row["passes"] != "yes" for row in [*kernels, *files])
    console.print(f"{len(kernels)} kernels in {len(files)} cubins: {failed or 'none'} beyond a budget")
    return 1 if failed else 0
