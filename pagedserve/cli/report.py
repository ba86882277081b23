# SPDX-License-Identifier: Apache-2.0
"""The demo's table, and its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pagedserve.cli import saved
from pagedserve.cli.console import duration
from pagedserve.cli.measure import Answer, Phase
from pagedserve.simulate.results import percentile

Seconds = Callable[[Answer], "float | None"]


def columns(phases: Sequence[Phase]) -> list[str]:
    """The table's head."""
    return ["", *(phase.name for phase in phases)]


def rows(phases: Sequence[Phase]) -> list[list[str]]:
    """The table's body: a row for each figure, a column for each phase."""

    def each(name: str, cell: Callable[[Phase], str]) -> list[str]:
        return [name, *(cell(phase) for phase in phases)]

    def p50_p99(seconds: Seconds) -> Callable[[Phase], str]:
        return lambda phase: _pair(_seconds(phase, seconds))

    return [
        each("answers", lambda phase: f"{len(phase.answers)}"),
        each("output tokens", lambda phase: f"{phase.num_output_tokens:,}"),
        each("time for all", lambda phase: duration(phase.duration_s)),
        each("... spent in the model", _model_share),
        each("tokens/s", lambda phase: f"{phase.tokens_per_s:,.0f}"),
        each("first token (TTFT) p50 / p99", p50_p99(lambda answer: answer.ttft_s)),
        each("between tokens (TPOT) p50 / p99", p50_p99(lambda answer: answer.tpot_s)),
        each("whole answer p50 / p99", p50_p99(lambda answer: answer.total_s)),
        each("had all come at once: TTFT p50 / p99", p50_p99(lambda answer: answer.first_s)),
        each("prompt tokens", lambda phase: f"{_sum(a.num_prompt_tokens for a in phase.answers):,}"),
        each("... found in the prefix cache", _prefix_hits),
        each("pages in use, mean / peak", _pages),
        each("preemptions", lambda phase: f"{_sum(a.preemptions for a in phase.answers)}"),
    ]


def num_identical(one: Phase, other: Phase) -> int:
    """How many users got the same tokens in both phases."""
    return sum(a.token_ids == b.token_ids for a, b in zip(one.answers, other.answers, strict=True))


def save_json(path: Path, phases: Sequence[Phase], options: dict[str, Any]) -> None:
    """Every number behind the table and the plot, signed with the machine and the date."""
    content = {
        "options": options,
        "phases": [_phase(phase) for phase in phases],
        "identical_answers": num_identical(phases[-2], phases[-1]),
    }
    saved.save_json(path, content)


def _phase(phase: Phase) -> dict[str, Any]:
    def both(seconds: Seconds) -> dict[str, float]:
        values = _seconds(phase, seconds)
        return {"p50": percentile(values, 50), "p99": percentile(values, 99)}

    return {
        "name": phase.name,
        "at_once": phase.at_once,
        "duration_s": phase.duration_s,
        "model_s": phase.model_s,
        "output_tokens": phase.num_output_tokens,
        "tokens_per_s": phase.tokens_per_s,
        "ttft_s": both(lambda answer: answer.ttft_s),
        "tpot_s": both(lambda answer: answer.tpot_s),
        "total_s": both(lambda answer: answer.total_s),
        "ttft_from_start_s": both(lambda answer: answer.first_s),
        "prompt_tokens": _sum(answer.num_prompt_tokens for answer in phase.answers),
        "prefix_hit_tokens": _sum(answer.prefix_hit_tokens for answer in phase.answers),
        "num_pages": phase.num_pages,
        "answers": [_answer(answer) for answer in phase.answers],
        "samples": {
            "t_s": [round(sample.t_s, 4) for sample in phase.samples],
            "running": [sample.running for sample in phase.samples],
            "waiting": [sample.waiting for sample in phase.samples],
            "pages_in_use": [sample.pages_in_use for sample in phase.samples],
        },
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "number": answer.number,
        "prompt": answer.prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.num_prompt_tokens,
        "prefix_hit_tokens": answer.prefix_hit_tokens,
        "output_tokens": len(answer.token_ids),
        "token_ids": answer.token_ids,
        "preemptions": answer.preemptions,
        "asked_s": answer.asked_s,
        "first_s": answer.first_s,
        "last_s": answer.last_s,
        "arrivals": [[round(t, 4), tokens] for t, tokens in answer.arrivals],
    }


def _seconds(phase: Phase, seconds: Seconds) -> list[float]:
    return [value for answer in phase.answers if (value := seconds(answer)) is not None]


def _pair(values: list[float]) -> str:
    return f"{duration(percentile(values, 50))} / {duration(percentile(values, 99))}"


def _sum(values: Iterable[int]) -> int:
    return sum(values)


def _model_share(phase: Phase) -> str:
    return f"{phase.model_s / phase.duration_s:.1%}" if phase.duration_s else "-"


def _prefix_hits(phase: Phase) -> str:
    hits = _sum(answer.prefix_hit_tokens for answer in phase.answers)
    total = _sum(answer.num_prompt_tokens for answer in phase.answers)
    return f"{hits:,} ({hits / total:.0%})" if total else "-"


def _pages(phase: Phase) -> str:
    used = [sample.pages_in_use for sample in phase.samples]
    return f"{statistics.fmean(used):.0f} / {max(used)} of {phase.num_pages:,}" if used else "-"
