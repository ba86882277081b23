# SPDX-License-Identifier: Apache-2.0
"""The plan's picture: who waited how long, how many stood in the queue, and how many replicas there were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedserve.cli.saved import AT_ONCE, LEGEND, MUTED, ONE_BY_ONE, picture
from pagedserve.simulate.capacity import Scenario
from pagedserve.simulate.results import percentile

COLOURS = (AT_ONCE, ONE_BY_ONE, MUTED)


def save_plot(path: Path, promised: Scenario, unbounded: Scenario, climbs: Sequence[Scenario], title: str) -> None:
    """Draw the spike with promises and without, and the climbs, into a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with picture(path, title, "", 12) as figure:
        rows = figure.subplots(4, 1)
        spikes = [(promised, AT_ONCE), (unbounded, ONE_BY_ONE)]
        end = min(max(s.results.end_s for s, _ in spikes), 4 * promised.profile.duration_s) or 1.0
        _waits(rows[0], spikes, end)
        _queue(rows[1], spikes, end)
        climbing = list(zip(climbs, COLOURS, strict=False))
        _replicas(rows[2], climbing)
        _waits(rows[3], climbing, max((s.results.end_s for s in climbs), default=1.0))
        rows[0].set_title("A spike: wait for the first token of who comes at this second, p50 and p99")
        rows[3].set_title("A climb: wait for the first token, p50 and p99")
        for axes in rows:
            axes.set_xlabel("seconds")


def waits_over(scenario: Scenario, bins: int = 80) -> tuple[list[float], list[float], list[float]]:
    """Time of each bin of arrivals with somebody served in it, and their TTFT's p50 and p99."""
    results = scenario.results
    width = max(scenario.profile.duration_s / bins, 1e-9)
    groups: dict[int, list[float]] = {}
    for arrival, ttft in zip(results.arrivals, results.ttfts, strict=True):
        if not math.isnan(ttft):
            groups.setdefault(int(arrival / width), []).append(ttft)
    places = sorted(groups)
    return (
        [(place + 0.5) * width for place in places],
        [percentile(groups[place], 50) for place in places],
        [percentile(groups[place], 99) for place in places],
    )


def _waits(axes: Any, scenarios: Sequence[tuple[Scenario, str]], end: float) -> None:
    for scenario, colour in scenarios:
        times, middle, tail = waits_over(scenario)
        axes.plot(times, middle, color=colour, linewidth=1.6, label=scenario.name)
        if times:  # an area of nothing reaches down to 0, which the logarithm refuses
            axes.fill_between(times, middle, tail, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xlim(0, end)
    axes.legend(**LEGEND)


def _queue(axes: Any, scenarios: Sequence[tuple[Scenario, str]], end: float) -> None:
    for scenario, colour in scenarios:
        samples = scenario.results.samples
        axes.plot(
            [s.t_s for s in samples], [s.waiting for s in samples], color=colour, linewidth=1.6, label=scenario.name
        )
    axes.set_title("A spike: requests that wait")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, end)
    axes.legend(**LEGEND)


def _replicas(axes: Any, scenarios: Sequence[tuple[Scenario, str]]) -> None:
    for scenario, colour in scenarios:
        samples = scenario.results.samples
        times = [s.t_s for s in samples]
        axes.step(times, [s.ready for s in samples], color=colour, linewidth=1.6, where="post", label=scenario.name)
        total = [s.ready + s.starting for s in samples]
        axes.step(times, total, color=colour, linewidth=0.9, linestyle=":", where="post")
    axes.set_title("A climb: replicas that serve (dotted: with those that start)")
    axes.set_ylim(bottom=0)
    axes.legend(**LEGEND)
