# SPDX-License-Identifier: Apache-2.0
"""Kernels with a change: a copy of csrc in which one text stands in another's place; the tree stays as it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pagedserve.emulate import build
from pagedserve.errors import InvalidInput

FOLDERS = ("target", "parts", "kernels", "plan", "launch")  # of csrc, that kernels are made of


@dataclass(frozen=True)
class Change:
    """One change to one file of csrc.

    Attributes:
        file: under csrc, "kernels/cache/copy_pages.cuh".
        old, new: text that stands there once, and what takes its place.
    """

    file: str
    old: str
    new: str


def changed_tree(changes: Sequence[Change], place: Path | None = None) -> Path:
    """A copy of csrc's kernels with these changes; the same changes at the same place, so that a library made of it is
    found again.

    Args:
        place: of the copy; default a folder of build/changed.

    Raises:
        InvalidInput: there is no such file, or it does not hold the old text once.
    """
    build.launch_file("plan_decode")  # or there is no checkout
    digest = hashlib.sha256(repr(changes).encode()).hexdigest()[:16]
    place = place or build.ROOT / "build" / "changed" / digest
    shutil.rmtree(place, ignore_errors=True)
    for folder in FOLDERS:
        shutil.copytree(build.CSRC / folder, place / folder)
    shutil.copy(build.CSRC / "params.h", place)
    for change in changes:
        path = place / change.file
        if not path.is_file():
            raise InvalidInput(f"there is no {change.file} in csrc/{', csrc/'.join(FOLDERS)}")
        text = path.read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            raise InvalidInput(
                f"{change.file} holds {change.old!r} {text.count(change.old)} times; give a text that stands there once"
            )
        path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return place


def launch_files(tree: Path) -> dict[str, Path]:
    """The launch files of a copy, by launcher: a session's sources."""
    return {path.stem: path for path in (tree / "launch").glob("*.cu")}
