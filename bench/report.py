# SPDX-License-Identifier: Apache-2.0
"""Rows that say where they come from: every row carries machine, versions, commit, date, threads and its command."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
# Every row has these, in this order, behind what it measured.
SIGNATURE = (
    "date",
    "cpu",
    "cores",
    "load_before",
    "gpu",
    "driver",
    "os",
    "python",
    "torch",
    "pagedserve",
    "commit",
    "threads",
    "command",
)

Row = dict[str, Any]


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """The first CUDA device and its driver's CUDA version, or "none"."""
    import torch

    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def driver() -> str:
    """The NVIDIA driver's version, or "none"."""
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return done.stdout.partition("\n")[0].strip() or "none" if done.returncode == 0 else "none"


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of this checkout, with "+" where files differ from it; "unknown" outside one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "pagedserve", "bench", "setup.py")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sign(threads: int, command: str) -> Row:
    """What every row of a run carries.

    Args:
        threads: that the run gives to each library.
        command: what runs the same again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": cores,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu_name(),
        "driver": driver(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "pagedserve": version_of("pagedserve"),
        "commit": commit(),
        "threads": threads,
        "command": command,
    }


def signed(rows: Sequence[Mapping[str, Any]], signature: Row) -> list[Row]:
    """Rows with the signature behind what they measured. A row's own command, if it has one, stays."""
    missing = [name for name in SIGNATURE if name not in signature]
    if missing:
        raise ValueError(f"a signature needs {', '.join(SIGNATURE)}; this one lacks {', '.join(missing)}")
    return [{**row, **{name: row.get(name, signature[name]) for name in SIGNATURE}} for row in rows]


class Sheet:
    """Rows on disk as they are measured: what ends a run early takes none of those it had.

    Args:
        name: of the run; with its date it names the files.
        signature: what `sign` made; every row carries it.
    """

    def __init__(self, name: str, signature: Row, folder: Path | None = None) -> None:
        stamp = str(signature["date"]).replace(":", "").replace("+0000", "Z")
        self.rows: list[Row] = []
        self._signature = signature
        self._lines = (folder or RESULTS) / f"{name}-{stamp}.jsonl"
        self._table = self._lines.with_suffix(".csv")

    @classmethod
    def resumed(cls, lines: Path, signature: Row | None = None) -> Sheet:
        """The sheet of a file of JSON lines with the rows that it has, if it is there; new ones are added behind."""
        sheet = cls("", signature or {"date": ""}, lines.parent)
        sheet._lines, sheet._table = lines, lines.with_suffix(".csv")
        if lines.exists():  # a line that was cut off in the middle is none
            whole = lines.read_text().rpartition("\n")[0]
            sheet.rows = [json.loads(line) for line in whole.splitlines()]
            lines.write_text(whole + "\n" * bool(whole))
        return sheet

    @property
    def files(self) -> list[Path]:
        return [self._lines, self._table] if self.rows else []

    def add(self, row: Mapping[str, Any]) -> None:
        """Signs a row and writes it, as a JSON line and into the CSV; the files begin with the first."""
        self.rows += signed([row], self._signature)
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        with self._lines.open("a" if len(self.rows) > 1 else "w") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        part = self._table.with_suffix(".csv.part")  # a later row may bring new columns: the CSV is written anew
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        part.replace(self._table)


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, title: str, console: Console) -> None:
    """Prints columns (key -> heading) of rows; numbers right, what a row lacks as a dash."""
    table = Table(title=title, title_justify="left")
    for key, heading in columns.items():
        is_text = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(text_of(row.get(key)) for key in columns))
    console.print(table)


def text_of(value: Any) -> str:
    """A table cell: three significant digits for numbers below a thousand, whole numbers above."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if value != value:
            return "nan"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def plot_bars(
    groups: Mapping[str, Mapping[str, float]], path: Path, *, title: str, y_label: str, roof: float | None = None
) -> Path:
    """Saves bars: one group on the x axis per key of groups, one bar per name inside; roof as a dashed line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bars(groups, title=title, y_label=y_label, roof=roof).savefig(path, dpi=120)
    return path


def draw_bars(groups: Mapping[str, Mapping[str, float]], *, title: str, y_label: str, roof: float | None = None) -> Any:
    """The matplotlib figure that plot_bars saves; its legend stands below the axes, over no bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure = Figure(figsize=(max(7.0, 1.2 * len(groups) * max(1, len(names) / 3)), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / max(len(names), 1)
    for index, name in enumerate(names):
        places = [place + index * width for place, bars in enumerate(groups.values()) if name in bars]
        axes.bar(places, [bars[name] for bars in groups.values() if name in bars], width, label=name)
    if roof is not None:
        axes.axhline(roof, linestyle="--", color="grey", label="measured roof")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], list(groups), rotation=20, ha="right")
    axes.set_ylabel(y_label)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=max(1, min(3, len(names))), frameon=False)
    return figure
