# SPDX-License-Identifier: Apache-2.0
"""Copies of csrc that checks run: with a mutant's change or without, and without what no check calls."""

from __future__ import annotations

import functools
import re
from contextlib import AbstractContextManager
from pathlib import Path

from bench.gpu.intrinsics import HEADER, SOURCE
from pagedserve.emulate import Session, build, session
from pagedserve.emulate.change import changed_tree, launch_files
from tests.wrong.checks import CHECKS
from tests.wrong.mutants import Mutant

# Cases of a launcher's switches, and sizes of a decode, so that less is compiled.
FEWER = (
    ("launch/append_kv.cu", r"case DType::k(F32|F16|F8E4M3):\s*return [^;]*;"),
    ("launch/paged_decode.cuh", r"if constexpr \(kMaxRows > \d+\) \{.*?\n  \}"),
)
DEFINES = ("PAGEDSERVE_DECODE_HEAD_DIM=64",)
WRONG = build.ROOT / "build" / "wrong"


@functools.cache
def tree_of(mutant: Mutant | None) -> Path:
    """The copy with the mutant's change, made anew by each process once; None: as it should be."""
    name = "right" if mutant is None else "".join(c for c in mutant.name.replace(" ", "-") if c.isalnum() or c == "-")
    root = changed_tree([] if mutant is None else [mutant.change], WRONG / name)
    for file, pattern in FEWER:
        text, count = re.subn(pattern, "", (root / file).read_text(), flags=re.S)
        assert count, f"{file} no longer holds {pattern!r}: say anew what is not to be compiled"
        (root / file).write_text(text)
    intrinsics = SOURCE.read_text().replace("../../csrc/target", "target").replace('"intrinsics.h"', f'"{HEADER}"')
    (root / "intrinsics.cu").write_text(intrinsics)
    return root


def session_of(check: str, mutant: Mutant | None) -> AbstractContextManager[Session]:
    """In which a check judges the mutant's kernels, or the right ones."""
    tree = tree_of(mutant)
    sources = launch_files(tree) | {"intrinsics": tree / "intrinsics.cu"}
    return session(CHECKS[check].run, sources=sources, defines=DEFINES)


def library_of(check: str, mutant: Mutant | None) -> tuple[Path, str] | None:
    """The launch file that the check runs, and its build; None where g++ compiles none."""
    file, run = CHECKS[check].file, CHECKS[check].run
    return (tree_of(mutant) / "launch" / f"{file}.cu", run.build) if file else None
