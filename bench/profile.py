# SPDX-License-Identifier: Apache-2.0
"""Cases under a profiler: a call inside an NVTX range of its name, and the command that makes Nsight Compute look."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

import torch
from rich.console import Console

from bench import ops
from bench.cases import BenchCase
from bench.device import placed

# What decides a memory-bound kernel: bytes and their share of the roof, why warps wait, occupancy, the code itself.
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats", "SourceCounters")


def ncu_command(case: BenchCase, args: argparse.Namespace) -> str:
    """Nsight Compute over one call, clocks left as they are."""
    sections = [word for name in SECTIONS for word in ("--section", name)]
    file = f"{case.op}-{case.name}".replace("/", "_")
    head = ["ncu", "--clock-control", "none", "--nvtx", "--nvtx-include", f"{label(case)}/", *sections, "-o", file]
    words = ["python", "-m", "bench", "ops", case.op, "--backend", args.backend, "--device", "cuda", "--profile"]
    return shlex.join([*head, *words, "--grid", args.grid, "--only", case.name])


def label(case: BenchCase) -> str:
    return f"{case.op} {case.name}"


def run(cases: Sequence[BenchCase], args: argparse.Namespace, console: Console) -> int:
    """Prints the commands, or runs each case once between two NVTX marks."""
    for case in cases:
        if args.ncu:
            print(ncu_command(case, args))
            continue
        inputs = placed(case.make(), args.device)
        call = ops.ours(case, inputs, args.backend)
        call()  # what a first call does besides is outside of the range
        if args.device == "cuda":
            torch.cuda.synchronize()
            with torch.cuda.nvtx.range(label(case)):
                call()
            torch.cuda.synchronize()
        else:
            with torch.profiler.record_function(label(case)):
                call()
        console.print(f"ran {label(case)}")
    return 0
