# SPDX-License-Identifier: Apache-2.0
"""What people see: rich where it is installed and stdout is a terminal, plain text otherwise."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Lines about progress where nothing is drawn over: two seconds apart at first, then a tenth of the time it took so far.
SPEAK_EVERY_S, SPEAK_EVERY_SHARE = 2.0, 0.1


class Console:
    """Text, tables and progress.

    Args:
        to_stderr: speak there, where stdout is for an answer alone.

    Attributes:
        rich: whether rich draws; without it every method prints lines that a pipe or a log can keep.
    """

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._file = sys.stderr if to_stderr else sys.stdout
        self.rich = self._file.isatty() and importlib.util.find_spec("rich") is not None
        rich_console = importlib.import_module("rich.console").Console if self.rich else None
        self._console: Any = rich_console(file=self._file, highlight=False) if rich_console else None

    def print(self, text: str = "") -> None:
        """One line, as it stands."""
        if self.rich:
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            self._line(text)

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        if self.rich:
            self._console.print(f"\n{text}", style="bold", markup=False)
        else:
            self._line(f"\n{text}")

    def write(self, text: str) -> None:
        """A piece of a line, at once: words as they come."""
        self._file.write(text)
        self._file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows of text under columns; the first column names its row, the others are set to the right."""
        if not self.rich:
            self._line("\n" + plain_table(title, columns, rows))
            return
        table = importlib.import_module("rich.table").Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", style=None if i else "cyan")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; the callback moves it to (bytes done, bytes in all). Without rich: a line now and then."""
        if self.rich:
            progress = importlib.import_module("rich.progress")
            columns = (progress.TextColumn(label), progress.BarColumn(), progress.DownloadColumn(binary_units=True))
            with progress.Progress(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(label, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
            return
        self._line(f"{label} ...")
        say = self._now_and_then()
        yield lambda done, total: say(lambda: f"{size(done)} of {size(total)}")

    @contextmanager
    def live(self, render: Callable[[], Any], plain: Callable[[], str]) -> Iterator[Callable[[], None]]:
        """A view that is drawn over itself; the callback says that something changed.

        Args:
            render: gives what rich draws, five times a second at most.
            plain: gives the line printed now and then where rich does not draw.
        """
        if self.rich:
            with importlib.import_module("rich.live").Live(
                get_renderable=render, console=self._console, refresh_per_second=5, transient=True
            ):
                yield lambda: None
            return
        say = self._now_and_then()
        yield lambda: say(plain)

    def _line(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    def _now_and_then(self) -> Callable[[Callable[[], str]], None]:
        """A callback that prints what it is handed, unless it did so a moment ago."""
        began = spoken = time.monotonic()

        def say(text: Callable[[], str]) -> None:
            nonlocal spoken
            now = time.monotonic()
            if now - spoken >= max(SPEAK_EVERY_S, SPEAK_EVERY_SHARE * (now - began)):
                spoken = now
                self._line(f"  {text()}")

        return say


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, two spaces between columns."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [title] if title else []
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if number == 0:
            text.append("  ".join("-" * width for width in widths))
    return "\n".join(text)


def duration(seconds: float | None) -> str:
    """Seconds as people read them: 850 us, 12.3 ms, 4.56 s, 3 min 20 s."""
    if seconds is None or math.isnan(seconds):
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1.0:
        return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def size(num_bytes: float) -> str:
    """Bytes as people read them, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
