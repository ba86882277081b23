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


def save(rows: Sequence[Row], name: str, folder: Path = RESULTS) -> list[Path]:
    """Writes rows as JSON lines and as CSV, in new files named by the run and its date; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = str(rows[0]["date"]).replace(":", "").replace("+0000", "Z") if rows else "empty"
    stem = folder / f"{name}-{stamp}"
    lines, table = stem.with_suffix(".jsonl"), stem.with_suffix(".csv")
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return [lines, table]


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.2 * len(groups) * max(1, len(names) / 3)), 4.5))
    width = 0.8 / max(len(names), 1)
    for index, name in enumerate(names):
        places = [place + index * width for place, bars in enumerate(groups.values()) if name in bars]
        axes.bar(places, [bars[name] for bars in groups.values() if name in bars], width, label=name)
    if roof is not None:
        axes.axhline(roof, linestyle="--", color="grey", label="measured roof")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], list(groups), rotation=20, ha="right")
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
