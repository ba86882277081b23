# SPDX-License-Identifier: Apache-2.0
"""What commands leave behind: numbers as JSON, and a picture; both in one look."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pagedserve.cli.machine import signature
from pagedserve.errors import InvalidInput

AT_ONCE, ONE_BY_ONE, WAIT, INK, MUTED, GRID = "#0b6e8f", "#d9822b", "#d5dde2", "#22313a", "#5d6f79", "#e4e9ec"
# On the title's line, where no bar and no curve can be.
LEGEND: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "ncols": 2, "borderaxespad": 0.2}
STYLE = {
    "font.size": 10,
    "axes.edgecolor": "#9fb0b9",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def picture_place(given: str, beside: str) -> Path:
    """Where --out puts its picture, in a folder that exists and can be written: known before the work, not after it.

    Args:
        beside: what is written beside it, in words.

    Raises:
        InvalidInput: it does not end in .png, or nothing can be written there.
    """
    out = Path(given)
    if out.suffix != ".png":
        raise InvalidInput(f"--out is {given!r}; give a path that ends in .png ({beside} put beside it)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InvalidInput(
            f"--out is {given!r}, and nothing can be written into its folder ({error}); give another path"
        ) from None
    if out.is_dir():
        raise InvalidInput(f"--out is {given!r}, which is a folder; give a path to a file")
    return out


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Signed with the machine and the date; null for what never happened (NaN)."""
    signed = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": signature()} | content
    path.write_text(json.dumps(finite(signed), ensure_ascii=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same with None for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def picture(path: Path, title: str, subtitle: str, height: float) -> Iterator[Any]:
    """A figure to draw into, 11 inches wide; saved as a PNG at the end.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = importlib.import_module("matplotlib")
    figure_module = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(STYLE):
        figure = figure_module.Figure(figsize=(11, height), layout="constrained", facecolor="white")
        figure.suptitle(
            f"{title}\n" if subtitle else title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK
        )
        figure.text(0.0115, 1 - 0.418 / height, subtitle, fontsize=9.5, color=MUTED)
        yield figure
        figure.savefig(path, dpi=130)
