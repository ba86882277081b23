# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: who waited and who was answered when, tokens a second, pages in use; one clock for all."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pagedserve.cli.console import duration
from pagedserve.cli.measure import Answer, Phase
from pagedserve.cli.saved import AT_ONCE, LEGEND, ONE_BY_ONE, WAIT, picture


def save_plot(path: Path, at_once: Phase, one_by_one: Phase, title: str, subtitle: str) -> None:
    """Draw both phases into a PNG.

    Args:
        title, subtitle: what was measured, and on what.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with picture(path, title, subtitle, 11.5) as figure:
        rows = figure.subplots(4, 1, sharex=True, height_ratios=(2.6, 2.6, 1.7, 1.7))
        end = max(at_once.duration_s, one_by_one.duration_s, 1e-3)
        _timeline(rows[0], at_once, AT_ONCE)
        _timeline(rows[1], one_by_one, ONE_BY_ONE)
        _throughput(rows[2], at_once, one_by_one, end)
        _pages(rows[3], at_once, one_by_one)
        rows[3].set_xlabel("seconds since the users came")
        rows[3].set_xlim(0, end * 1.01)


def _timeline(axes: Any, phase: Phase, colour: str) -> None:
    """A bar for each user, from coming (time 0) to the last word: waiting pale, words coming in colour."""
    for row, answer in enumerate(phase.answers, start=1):
        if answer.first_s is None or answer.last_s is None:
            continue
        axes.barh(row, answer.first_s, height=0.8, color=WAIT, linewidth=0)
        axes.barh(row, answer.last_s - answer.first_s, left=answer.first_s, height=0.8, color=colour, linewidth=0)
    firsts = sorted(answer.first_s for answer in phase.answers if answer.first_s is not None)
    longest = f", longest wait {duration(firsts[-1])}" if firsts else ""
    name = phase.name[:1].upper() + phase.name[1:]
    axes.set_title(f"{name}: all answered in {duration(phase.duration_s)}{longest}")
    axes.set_ylabel("user")
    axes.set_ylim(len(phase.answers) + 0.6, 0.4)
    axes.grid(axis="y", visible=False)
    patch = importlib.import_module("matplotlib.patches").Patch
    axes.legend(
        handles=[patch(color=WAIT, label="waits for the first word"), patch(color=colour, label="words come")],
        **LEGEND,
    )
    axes.yaxis.set_major_locator(importlib.import_module("matplotlib.ticker").MaxNLocator(integer=True))


def _throughput(axes: Any, at_once: Phase, one_by_one: Phase, end: float) -> None:
    width = max(0.25, end / 120)
    for phase, colour in ((at_once, AT_ONCE), (one_by_one, ONE_BY_ONE)):
        times, rates = rates_over(phase.answers, width, phase.duration_s)
        axes.stairs(rates, times, color=colour, fill=True, alpha=0.18)
        axes.stairs(
            rates, times, color=colour, linewidth=1.6, label=f"{phase.name}: {phase.tokens_per_s:,.0f} on average"
        )
    axes.set_title("Output tokens a second")
    axes.set_ylim(bottom=0)
    axes.legend(**LEGEND)


def rates_over(answers: list[Answer], width: float, end: float) -> tuple[list[float], list[float]]:
    """Edges of bins of `width` seconds, the last one cut at the end, and tokens a second in each."""
    num_bins = max(1, -int(-end // width))
    edges = [min(i * width, end) for i in range(num_bins + 1)]
    counts = [0] * num_bins
    for answer in answers:
        for t, tokens in answer.arrivals:
            counts[min(int(t / width), num_bins - 1)] += tokens
    # A last sliver of a bin would show a rate of next to nothing measured.
    if num_bins > 1 and edges[-1] - edges[-2] < width / 2:
        last = counts.pop()
        counts[-1] += last
        edges.pop(-2)
    return edges, [n / max(b - a, 1e-9) for n, a, b in zip(counts, edges, edges[1:], strict=False)]


def _pages(axes: Any, at_once: Phase, one_by_one: Phase) -> None:
    peak = 0
    for phase, colour in ((at_once, AT_ONCE), (one_by_one, ONE_BY_ONE)):
        times = [sample.t_s for sample in phase.samples]
        used = [sample.pages_in_use for sample in phase.samples]
        peak = max(peak, *used, 1)
        axes.fill_between(times, used, color=colour, alpha=0.18, step="post", linewidth=0)
        axes.plot(times, used, color=colour, linewidth=1.6, drawstyle="steps-post", label=phase.name)
    axes.set_title(f"Pages in use, of {at_once.num_pages:,}")
    axes.set_ylim(0, peak * 1.1)
    axes.legend(**LEGEND)
