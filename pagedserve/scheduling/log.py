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
    """A whole log, but for a last line torn in mid-write. InvalidInput for a line that no log of this version has."""
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
    """For each record what a new scheduler decides or, where it is a Planned, plans: the same as in the first run."""
    scheduler = Scheduler(config)
    for record in records:
        if isinstance(record, Planned):
            yield [], scheduler.plan(record.t)
        else:
            yield scheduler.apply(record), None


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> object:
    """What JSON does not know: a set of tokens, or ints of another kind. All else was refused, and is again."""
    if isinstance(value, frozenset):
        return {"set": sorted(value, key=repr)}
    try:
        return list(map(index, value)) if hasattr(value, "__iter__") else index(value)
    except TypeError:
        return {"repr": repr(value)}


def _pack(value: Record | Decision) -> list[object]:
    return [type(value).__name__.lower(), _fields(value)]


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
