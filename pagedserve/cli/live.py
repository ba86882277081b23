# SPDX-License-Identifier: Apache-2.0
"""What the demo shows while it runs: a few users' words, and the counters of all."""

from __future__ import annotations

import importlib
from typing import Any

from pagedserve.cli.console import duration
from pagedserve.cli.measure import Answer, Phase

NUM_STREAMS = 8
BAR_WIDTH = 28


class CrowdView:
    """Many answers growing at once."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        count = len(phase.answers)
        # Users from the whole list, so that different kinds of questions are seen.
        shown = range(0, count, max(1, count // NUM_STREAMS))
        self._shown = [phase.answers[i] for i in shown][:NUM_STREAMS]

    def render(self) -> Any:
        """For rich: a line for each shown user, then the counters."""
        table = importlib.import_module("rich.table").Table.grid(padding=(0, 1), expand=True)
        text = importlib.import_module("rich.text").Text
        table.add_column(justify="right", style="cyan", width=4)
        table.add_column(no_wrap=True, ratio=2, style="dim")
        table.add_column(no_wrap=True, ratio=5)
        for answer in self._shown:
            table.add_row(str(answer.number + 1), text(answer.prompt, overflow="ellipsis"), text(_tail(answer)))
        counters = text(f"\n{_bar(_finished(self._phase), len(self._phase.answers))} {self.line()}", style="bold")
        return importlib.import_module("rich.console").Group(table, counters)

    def line(self) -> str:
        """The counters."""
        phase = self._phase
        latest = phase.samples[-1] if phase.samples else None
        pages = f", {latest.pages_in_use:,} of {phase.num_pages:,} pages" if latest else ""
        started = sum(answer.first_s is not None for answer in phase.answers)
        return (
            f"{_finished(phase)} of {len(phase.answers)} answered, {started - _finished(phase)} being answered, "
            f"{phase.num_output_tokens:,} tokens, {phase.rate():,.0f} tokens/s{pages}"
        )


class QueueView:
    """One answer at a time."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def render(self) -> Any:
        """For rich: the answer that is being given, then the counters."""
        text = importlib.import_module("rich.text").Text
        number = min(_finished(self._phase), len(self._phase.answers) - 1)
        answer = self._phase.answers[number]
        words = text.assemble((f"{number + 1:4} ", "cyan"), (f"{answer.prompt[:40]}  ", "dim"), _tail(answer))
        words.no_wrap, words.overflow = True, "ellipsis"
        counters = text(f"{_bar(number, len(self._phase.answers))} {self.line()}", style="bold")
        return importlib.import_module("rich.console").Group(words, counters)

    def line(self) -> str:
        """The counters."""
        phase = self._phase
        finished = _finished(phase)
        now = phase.samples[-1].t_s if phase.samples else 0.0
        left = f", {duration(now / finished * (len(phase.answers) - finished))} to go" if finished else ""
        return f"{finished} of {len(phase.answers)} answered, {phase.rate():,.0f} tokens/s{left}"


def _finished(phase: Phase) -> int:
    return sum(answer.finish_reason is not None for answer in phase.answers)


def _tail(answer: Answer, length: int = 90) -> str:
    """The latest words of an answer, on one line."""
    words = " ".join(answer.text.split())
    return words if len(words) <= length else f"... {words[-length:]}"


def _bar(done: int, total: int) -> str:
    filled = BAR_WIDTH * done // max(total, 1)
    return "█" * filled + "░" * (BAR_WIDTH - filled)
