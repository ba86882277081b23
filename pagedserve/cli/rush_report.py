# SPDX-License-Identifier: Apache-2.0
"""The rush's table, its definitions, its JSON and its picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pagedserve.cli import saved
from pagedserve.cli.console import duration
from pagedserve.cli.rush_load import PROBES, Rush, consistency
from pagedserve.cli.saved import AT_ONCE, INK, LEGEND, MUTED, ONE_BY_ONE
from pagedserve.simulate.results import SERVED, Spread, Summary, keeps

DEFINITIONS = """\
Arrivals: requests by the clock (open loop); nobody waits to ask because others wait.
TTFT: first token - when the request was due. TPOT: (last token - first token) / (tokens - 1) of each request with two
tokens or more (vLLM's bench serve; AIPerf calls it inter-token latency). Percentiles are of the requests served.
In time: served, with TTFT and TPOT as promised. Goodput: requests in time / seconds of arrivals, and as a share of all
that arrived, those sent away included, each counted once, at its first attempt. An oracle: the best bound of the queue
in hindsight, or a queue that knows how fast it will drain; simulated, on the steps that this run measured. It keeps no
place for who comes back: to stand beside it, run with --returns 0.
Sent away: refused at the door or in the queue, with the Retry-After they were told. Came back: after that.
A place is kept for 2 s from the time that was told; got it: was admitted.
Consistency: the same greedy request ten times, evenly spread; its wait is from its first attempt to its first token."""


FLOOR_S = 0.02  # shorter waits, and those who did not wait, stand here in the picture


def rows(rushes: Sequence[Rush]) -> list[list[str]]:
    """The table's body: a row for each figure, a column for each phase."""
    summaries = [rush.results().summary() for rush in rushes]
    same = [consistency(rush) for rush in rushes]

    def each(name: str, cell: Callable[[Summary], str]) -> list[str]:
        return [name, *(cell(summary) for summary in summaries)]

    return [
        each("arrivals", lambda s: f"{s.arrivals:,}"),
        each("goodput, of all arrivals", lambda s: f"{s.kept_share:.1%}"),
        [
            "... an oracle's, nobody coming back",
            *("-" if math.isnan(r.oracle_share) else f"{r.oracle_share:.1%}" for r in rushes),
        ],
        each("... in the end, those who came back too", lambda s: f"{(s.kept + s.came_back_kept) / s.arrivals:.1%}"),
        each("goodput, requests/s", lambda s: f"{s.goodput_per_s:.3g}"),
        each("served", lambda s: f"{s.served:,}"),
        each("... of these in time", lambda s: f"{s.kept_of_served:.1%}" if s.served else "-"),
        each("TTFT p50 / p95 / p99", lambda s: _spread(s.ttft_s)),
        each("TPOT p50 / p95 / p99", lambda s: _spread(s.tpot_s)),
        each("whole answer p50 / p95 / p99", lambda s: _spread(s.total_s)),
        each("sent away", lambda s: f"{sum(s.refused.values()):,}"),
        each("... by reason", lambda s: ", ".join(f"{n} {reason}" for reason, n in sorted(s.refused.items())) or "-"),
        each("... Retry-After p50 / p95 / p99", lambda s: _spread(s.retry_after_s)),
        each("... came back, and were in time", lambda s: f"{s.came_back:,}, {s.came_back_kept:,}"),
        ["... found a place kept, and got it", *(f"{r.places_claimed:,}, {r.places_kept:,}" for r in rushes)],
        [
            f"same request {PROBES} times: answered, identical",
            *(f"{c.answered}, {c.identical}" for c in same),
        ],
        [
            "... wait least / median / most",
            *(" / ".join(map(duration, (c.least_s, c.median_s, c.most_s))) for c in same),
        ],
        ["preemptions, tokens computed again", *(f"{r.preemptions}, {r.recomputed_tokens:,}" for r in rushes)],
    ]


def line(rush: Rush) -> str:
    """How a phase is doing, in one line."""
    # Calls stand in the order in which they were due, those who came back behind them.
    begun = [call for call in rush.calls if call.due_s <= rush.now_s]
    served = [call for call in begun if call.end in SERVED]
    away = sum(call.end not in SERVED and call.end != "" for call in begun)
    latest = rush.samples[-1] if rush.samples else None
    queue = f", {latest.running} being answered, {latest.waiting} waiting" if latest else ""
    rate = rush.profile.rate(rush.now_s)
    return (
        f"{rush.now_s:5.1f} s, {rate:.3g} requests/s come: {len(begun)} came, {len(served)} answered, "
        f"{away} sent away{queue}"
    )


def save_json(path: Path, rushes: Sequence[Rush], options: dict[str, Any]) -> None:
    """Every number behind the table and the plot, signed with the machine and the date."""
    phases = [_phase(rush) for rush in rushes]
    saved.save_json(path, {"options": options, "definitions": DEFINITIONS, "phases": phases})


def _phase(rush: Rush) -> dict[str, Any]:
    summary = rush.results().summary()
    spreads = {"ttft_s": summary.ttft_s, "tpot_s": summary.tpot_s, "total_s": summary.total_s}
    spreads["retry_after_s"] = summary.retry_after_s
    numbers: dict[str, Any] = {
        "arrivals": summary.arrivals,
        "served": summary.served,
        "kept": summary.kept,
        "kept_share": summary.kept_share,
        "oracle_share": rush.oracle_share,
        "goodput_per_s": summary.goodput_per_s,
        "refused": dict(summary.refused),
        "came_back": summary.came_back,
        "came_back_kept": summary.came_back_kept,
        "places_claimed": rush.places_claimed,
        "places_kept": rush.places_kept,
        **{name: asdict(spread) for name, spread in spreads.items()},
    }
    calls = [
        {
            "number": call.number,
            "attempt": call.attempt,
            "probe": call.probe,
            "prompt_tokens": len(call.prompt),
            "due_s": call.due_s,
            "first_s": call.first_s,
            "last_s": call.last_s,
            "output_tokens": len(call.token_ids),
            "end": call.end,
            "retry_after_s": call.retry_after_s,
            "hold_s": call.hold_s,
        }
        for call in rush.calls
    ]
    timeline = [[round(s.t_s, 3), s.running, s.waiting, s.pages_in_use] for s in rush.samples]
    return {
        "name": rush.name,
        "slo": asdict(rush.slo),
        "summary": numbers,
        "consistency": asdict(consistency(rush)),
        "calls": calls,
        "timeline": timeline,
    }


def _spread(values: Spread) -> str:
    numbers = (values.p50, values.p95, values.p99)
    return " / ".join(duration(number) for number in numbers)


def save_plot(path: Path, rushes: Sequence[Rush], title: str, subtitle: str) -> None:
    """Draw both phases into a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with saved.picture(path, title, subtitle, 11) as figure:
        axes = figure.subplots(len(rushes) + 1, 1, sharex=True)
        for rush, own, colour in zip(rushes, axes, (AT_ONCE, ONE_BY_ONE), strict=False):
            _waits(own, rush, colour)
        for rush, colour in zip(rushes, (AT_ONCE, ONE_BY_ONE), strict=False):
            times, waiting = [s.t_s for s in rush.samples], [s.waiting for s in rush.samples]
            axes[-1].plot(times, waiting, color=colour, linewidth=1.6, label=rush.name)
        axes[-1].set_title("Requests that wait")
        axes[-1].set_ylim(bottom=0)
        axes[-1].set_xlabel("seconds since the doors opened")
        axes[-1].legend(**LEGEND)


def _waits(axes: Any, rush: Rush, colour: str) -> None:
    """A dot for each request at the second it came: its wait for the first token; those sent away along the bottom."""
    summary = rush.results().summary()
    name = rush.name[:1].upper() + rush.name[1:]
    axes.set_title(f"{name}: {summary.kept_share:.0%} of all arrivals in time")
    groups: dict[str, list[tuple[float, float]]] = {"in time": [], "late": [], "sent away": []}
    for call in rush.calls:
        if call.end in SERVED and call.first_s is not None and call.last_s is not None:
            ttft, gaps = call.first_s - call.due_s, len(call.token_ids) - 1
            tpot = (call.last_s - call.first_s) / gaps if gaps > 0 else math.nan
            kept = keeps(rush.slo, ttft, tpot, call.last_s - call.due_s)
            groups["in time" if kept else "late"].append((call.due_s, max(ttft, FLOOR_S)))
        elif call.end:
            groups["sent away"].append((call.due_s, FLOOR_S))
    looks = {"in time": (colour, "o"), "late": ("#b3261e", "o"), "sent away": (MUTED, "|")}
    for label, points in groups.items():
        own, marker = looks[label]
        x, y = [p[0] for p in points], [p[1] for p in points]
        axes.scatter(x, y, s=14, color=own, marker=marker, linewidth=0.8, alpha=0.8, label=f"{label}: {len(points)}")
    if rush.slo.ttft_s is not None:
        axes.axhline(rush.slo.ttft_s, color=INK, linewidth=0.9, linestyle="--")
    axes.set_yscale("log")
    axes.set_ylabel("wait for the first token, s")
    axes.legend(**{**LEGEND, "ncols": 3})
