# SPDX-License-Identifier: Apache-2.0
"""`pagedserve replay`: an event log again, without a model; and what would have been under another config."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pagedserve.cli.console import Console, duration
from pagedserve.cli.slo import parse_slo
from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import Session, read_sessions, require_room
from pagedserve.eventlog.replay import Outcome, compare, outcome, what_if
from pagedserve.scheduling.config import SchedulerConfig

MAX_SHOWN = 5  # differences of a session
EXIT_DIFFERS = 1


def run(args: argparse.Namespace) -> int:
    """Replay every session of the log; 1 where a decision differs."""
    console = Console()
    changes, promised = _changes(args.what_if), _promised(args.slo)
    try:
        with Path(args.log).open(encoding="utf-8") as file:
            sessions = list(read_sessions(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the event log {args.log!r} cannot be read: {error}") from error
    num_decisions, num_differences = 0, 0
    for session in sessions:
        found = compare(session)
        num_decisions += found.decisions
        num_differences += len(found.differences)
        for line in found.differences[:MAX_SHOWN]:
            console.print(line)
    console.print(f"{num_decisions:,} decisions, {num_differences:,} differ")
    if changes or promised:
        session = sessions[-1]
        columns = {
            "as logged": outcome(session),
            "the same, simulated": what_if(session, session.config),
            "what if": what_if(session, _changed(session, changes), **promised),
        }
        console.table("What became of the last session's requests", ["", *columns], _rows(list(columns.values())))
    return EXIT_DIFFERS if num_differences else 0


def _changes(texts: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE of SchedulerConfig, values as JSON."""
    known = {field.name for field in fields(SchedulerConfig)} - {"prices"}
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise InvalidInput(f"--what-if {text!r} is no FIELD=VALUE; fields: {', '.join(sorted(known))}")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            raise InvalidInput(f"--what-if {text!r}: write the value as JSON, as 200, 0.05, true or null") from None
    return changes


def _promised(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    slo = parse_slo(text)
    named = {"ttft_deadline_s": slo.ttft_s, "tpot_target_s": slo.tpot_s, "deadline_s": slo.total_s}
    return {name: value for name, value in named.items() if value is not None}


def _changed(session: Session, changes: dict[str, Any]) -> SchedulerConfig:
    try:
        return require_room(replace(session.config, **changes))
    except (TypeError, AttributeError) as error:
        raise InvalidInput(f"--what-if {changes} is not a config: {error}") from error


def _rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    def at(values: list[float], share: float) -> str:
        return duration(values[math.ceil(share * len(values)) - 1]) if values else "-"

    counts = ("requests", "served", "on_time", "rejected", "expired", "cut", "preemptions")
    rows = [[name.replace("_", " "), *(f"{getattr(each, name):,}" for each in outcomes)] for name in counts]
    for name, field in (("first token", "ttft_s"), ("between tokens", "tpot_s")):
        for share in (0.5, 0.99):
            rows.append([f"{name} p{100 * share:g}", *(at(getattr(each, field), share) for each in outcomes)])
    return rows
