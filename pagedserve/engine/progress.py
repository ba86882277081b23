# SPDX-License-Identifier: Apache-2.0
"""A line that says how far a long call has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]

REDRAW_S = 0.1


@contextmanager
def reporter(progress: bool | Report, total: int) -> Iterator[Report]:
    """The function to call with (done, total): the caller's own, one that draws on stderr, or one that does nothing."""
    if callable(progress):
        yield progress
    elif progress:
        line = _Line()
        try:
            yield line
        finally:
            line.end()
    else:
        yield lambda done, total: None


class _Line:
    def __init__(self) -> None:
        self._start = time.monotonic()
        self._drawn = -REDRAW_S
        self._text = ""

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._start
        if elapsed - self._drawn < REDRAW_S and done < total:
            return
        self._drawn = elapsed
        self._text = f"{done} of {total} prompts, {elapsed:.1f} s"
        sys.stderr.write(f"\r{self._text}")
        sys.stderr.flush()

    def end(self) -> None:
        if self._text:
            sys.stderr.write("\n")
