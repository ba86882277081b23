# SPDX-License-Identifier: Apache-2.0
"""Kernels with a change: a copy of csrc in which one text stands in another's place; the tree stays as it was."""

from __future__ import annotations

import hashlib
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
    paths = [path for folder in FOLDERS for path in (build.CSRC / folder).rglob("*") if path.is_file()]
    paths.append(build.CSRC / "params.h")
    texts = {path.relative_to(build.CSRC): path.read_text(encoding="utf-8") for path in paths}
    for change in changes:
        text = texts.get(Path(change.file))
        if text is None:
            raise InvalidInput(f"there is no {change.file} in csrc/{', csrc/'.join(FOLDERS)}")
        if text.count(change.old) != 1:
            raise InvalidInput(
                f"{change.file} holds {change.old!r} {text.count(change.old)} times; give a text that stands there once"
            )
        texts[Path(change.file)] = text.replace(change.old, change.new)
    for name, text in texts.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        build.write(place / name, text)
    return place


def launch_files(tree: Path) -> dict[str, Path]:
    """The launch files of a copy, by launcher: a session's sources."""
    return {path.stem: tree / "launch" / path.name for path in (build.CSRC / "launch").glob("*.cu")}
