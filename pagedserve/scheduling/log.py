# SPDX-License-Identifier: Apache-2.0
"""A log of everything a scheduler was told, as JSON lines, and its replay.

The first line names the version and the config; each further line is a record and what it decided:
`["arrive",{"t":0.5,"id":"a","prompt":[1,2],"max_tokens":8},[["admit",{"id":"a"}]]]`. Fields at their default are left
out. Writing the lines is the caller's: `lines.append(encode(record, decisions))` is an on_event.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from operator import index
from typing import Any, NamedTuple

from pagedserve.errors import InvalidInput
from pagedserve.scheduling import events
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision, Planned, Record, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

VERSION = 1

_RECORDS = ("Arrive", "Abort", "StepDone", "StepFailed", "Resize", "Drain", "Planned")
_DECISIONS = ("Admit", "Reject", "Expire", "Preempt", "Finish")
_TYPES: dict[str, Any] = {name.lower(): getattr(events, name) for name in _RECORDS + _DECISIONS}
_TUPLES = ("prompt", "tokens", "failed", "graph_buckets")


class Replayed(NamedTuple):
    """A record, what it decides now, and the plan where it is a Planned."""

    record: Record
    decisions: list[Decision]
    plan: StepPlan | None


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
        return _unpack(tag, fields), [_unpack(*packed) for packed in decisions]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"not a line of a scheduler's log: {line[:80]!r} ({error})") from error


def read_log(lines: Iterable[str]) -> tuple[SchedulerConfig, Iterator[tuple[Record, list[Decision]]]]:
    """A whole log. A last line that was torn in mid-write is left out.

    Raises:
        InvalidInput: no log, one of another version, or a line inside it that cannot be read.
    """
    rest = iter(lines)
    try:
        header = json.loads(next(rest, ""))
        version, config = header["pagedserve_log"], header["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput("not a scheduler's log: the first line is not its header") from error
    if version != VERSION:
        raise InvalidInput(f"the log has version {version}; this program reads version {VERSION}")
    return SchedulerConfig(**_restored(config)), _records(rest)


def replay(config: SchedulerConfig, records: Iterable[Record]) -> Iterator[Replayed]:
    """Give a new scheduler the same records; its decisions and plans are those of the first run."""
    scheduler = Scheduler(config)
    for record in records:
        if isinstance(record, Planned):
            yield Replayed(record, [], scheduler.plan(record.t))
        else:
            yield Replayed(record, scheduler.apply(record), None)


def _records(lines: Iterator[str]) -> Iterator[tuple[Record, list[Decision]]]:
    line = next(lines, None)
    while line is not None:
        following = next(lines, None)
        try:
            decoded = decode(line)
        except InvalidInput:
            if following is None and not line.endswith("\n"):
                return
            raise
        yield decoded
        line = following


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    """Anything JSON does not know; what is not a set of tokens was refused at arrival, and is again."""
    return {"set": sorted(value)} if isinstance(value, frozenset) else {"repr": repr(value)}


def _fields(value: Any) -> dict[str, object]:
    packed = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if field.default is dataclasses.MISSING or content != field.default:
            packed[field.name] = content
    return packed


def _pack(value: Record | Decision) -> list[object]:
    fields = _fields(value)
    for name in ("prompt", "tokens"):
        if name in fields:
            try:
                fields[name] = list(map(index, fields[name]))  # type: ignore[call-overload]
            except TypeError:
                fields[name] = _plain(fields[name])
    return [type(value).__name__.lower(), fields]


def _unpack(tag: str, fields: dict[str, Any]) -> Any:
    return _TYPES[tag](**_restored(fields))


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    for name, content in fields.items():
        if name in _TUPLES and isinstance(content, list):
            fields[name] = tuple(content)
        elif isinstance(content, dict) and "set" in content:
            fields[name] = frozenset(content["set"])
    return fields
