# SPDX-License-Identifier: Apache-2.0
"""Every wrong kernel is rejected by the check that is named for it, and the right one passes the same check."""

import re
import shutil
from pathlib import Path

import pytest

from bench.gpu.intrinsics import HEADER, SOURCE
from pagedserve.emulate import build, session
from pagedserve.errors import KernelFault
from tests.wrong.checks import CHECKS
from tests.wrong.mutants import MUTANTS, Mutant

FOLDERS = ("target", "parts", "kernels", "plan", "launch")  # of csrc, that kernels are made of
# What the checks do not call, so that less is compiled: cases of a launcher's switches, sizes of a decode.
FEWER = (("launch/append_kv.cu", r"case DType::k(F32|F16|F8E4M3):\s*return [^;]*;", ""),)
WRONG = build.ROOT / "build" / "wrong"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")


def copied_tree(name: str) -> Path:
    """A copy of csrc with fewer instantiations; always at the same place, so that what is compiled is found again."""
    root = WRONG / name.replace(" ", "-").replace(":", "").replace("'", "")
    shutil.rmtree(root, ignore_errors=True)
    for folder in FOLDERS:
        if (build.CSRC / folder).is_dir():
            shutil.copytree(build.CSRC / folder, root / folder)
    shutil.copy(build.CSRC / "params.h", root)
    for file, pattern, instead in FEWER:
        text, count = re.subn(pattern, instead, (root / file).read_text())
        assert count, f"{file} no longer holds {pattern!r}: say anew what is not to be compiled"
        (root / file).write_text(text)
    intrinsics = SOURCE.read_text().replace("../../csrc/target", "target").replace('"intrinsics.h"', f'"{HEADER}"')
    (root / "intrinsics.cu").write_text(intrinsics)
    return root


def changed_tree(mutant: Mutant) -> Path:
    root = copied_tree(mutant.name)
    path = root / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} no longer holds {mutant.old!r} once: say the change anew"
    path.write_text(text.replace(mutant.old, mutant.new))
    return root


def launch_files(tree: Path) -> dict[str, Path]:
    return {path.stem: path for path in [*(tree / "launch").glob("*.cu"), tree / "intrinsics.cu"]}


def needs(check: str) -> None:
    if "nvcc" in check and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")


@pytest.mark.parametrize("check", dict.fromkeys(mutant.check for mutant in MUTANTS))
def test_the_right_kernel_passes(check):
    needs(check)
    with session(sources=launch_files(copied_tree("right"))):
        CHECKS[check]()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_wrong_kernel_is_rejected(mutant):
    needs(mutant.check)
    tree = changed_tree(mutant)
    with session(sources=launch_files(tree)), pytest.raises((AssertionError, KernelFault)) as caught:
        CHECKS[mutant.check]()
    print(f"{mutant.name}: {caught.value}")


def test_there_are_enough_of_them():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15
    assert set(CHECKS) == {mutant.check for mutant in MUTANTS}
