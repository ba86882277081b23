# SPDX-License-Identifier: Apache-2.0
"""A log of everything a scheduler was told, as JSON lines, and its replay.

The first line names the version and the config; each further line is a record and what it decided:
`["arrive",{"t":0.5,"id":"a","prompt":[1,2],"max_tokens":8},[["admit",{"id":"a"}]]]`. Fields at their default are left
out. An on_event that writes `encode(record, decisions)` is all it takes; the file is the caller's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from operator import index
from typing import Any, get_args

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision, Planned, Record, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

VERSION = 1

_TYPES: dict[str, Any] = {kind.__name__.lower(): kind for kind in get_args(Record) + get_args(Decision)}


def encode_header(config: SchedulerConfig) -> str:
    """The log's first line, without its line end."""
    return _dump({"pagedserve_log": VERSION, "config": _fields(config)})


def encode(record: Record, decisions: Iterable[Decision] = ()) -> str:
    """A record's line, without its line end. O(what it holds)."""
    return _dump([*_pack(record), [_pack(decision) for decision in decisions]])


def decode(line: str) -> tuple[Record, list[Decision]]:
    """What `encode` wrote; InvalidInput for anything else."""
    try:
        tag, fields, decisions = json.loads(line)
        return _TYPES[tag](**_restored(fields)), [_TYPES[tag](**fields) for tag, fields in decisions]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(f"not a line of a scheduler's log: {line[:80]!r} ({error})") from error


def read_log(lines: Iterable[str]) -> tuple[SchedulerConfig, Iterator[tuple[Record, list[Decision]]]]:
    """A whole log; a last line without its end, torn in mid-write, is left out.

    InvalidInput for anything but a log, for another version, and for a line inside it that cannot be read.
    """
    rest = iter(lines)
    try:
        header = json.loads(next(rest, ""))
        version, config = header["pagedserve_log"], header["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput("not a scheduler's log: the first line is not its header") from error
    if version != VERSION:
        raise InvalidInput(f"the log has version {version}; this program reads version {VERSION}")
    return SchedulerConfig(**_restored(config)), (decode(line) for line in rest if line.endswith("\n"))


def replay(config: SchedulerConfig, records: Iterable[Record]) -> Iterator[tuple[list[Decision], StepPlan | None]]:
    """Tell a new scheduler the same: for each record its decisions, and the plan where it is a Planned.

    With the config and records of a log they are those of the first run, on any machine.
    """
    scheduler = Scheduler(config)
    for record in records:
        if isinstance(record, Planned):
            yield [], scheduler.plan(record.t)
        else:
            yield scheduler.apply(record), None


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    """What JSON does not know. But for sets of tokens the scheduler refused it, and will again."""
    return {"set": sorted(value)} if isinstance(value, frozenset) else {"repr": repr(value)}


def _pack(value: Record | Decision) -> list[object]:
    fields = _fields(value)
    for name in ("prompt", "tokens"):
        if name in fields:
            try:
                fields[name] = list(map(index, fields[name]))
            except TypeError:
                fields[name] = _plain(fields[name])
    return [type(value).__name__.lower(), fields]


def _fields(value: Any) -> dict[str, Any]:
    """The fields that are not at their default."""
    fields = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if field.default is dataclasses.MISSING or content != field.default:
            fields[field.name] = content
    return fields


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    for name, content in fields.items():
        if isinstance(content, list):
            fields[name] = tuple(content)
        elif isinstance(content, dict) and "set" in content:
            fields[name] = frozenset(content["set"])
    return fields
