# SPDX-License-Identifier: Apache-2.0
"""The event log's lines.

A session begins with a header, which names the version and the config; each further line is a record and what it
decided: `["arrive",[0.5,"a",[1,2],8],[["admit",["a"]]]]`. Fields stand in order, defaults at the end are left out.
A file holds one session after another. Its last line may be torn: a record counts once its line end is written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any, NamedTuple, get_args

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.watched import Record
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import Decision, Resize

VERSION = 3

# What a replay makes room for: 268 million tokens in pages of 16.
MOST_PAGES, MOST_SEQS = 1 << 24, 1 << 20

_TYPES: dict[str, Any] = {kind.__name__.lower(): kind for kind in get_args(Record) + get_args(Decision)}
_BROKEN = (ValueError, TypeError, KeyError, AttributeError, IndexError)


class Entry(NamedTuple):
    """A record, and what it decided."""

    record: Record
    decisions: list[Decision]


class Session(NamedTuple):
    """From a scheduler's start to its end, or to the crash."""

    config: SchedulerConfig
    entries: list[Entry]


def encode_header(config: SchedulerConfig) -> str:
    """A session's first line, without its line end."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields["tenants"], fields["prices"] = dict(config.tenants), dataclasses.astuple(config.prices)
    return _dump({"pagedserve_log": VERSION, "config": fields})


def encode(record: Record, decisions: Iterable[Decision] = ()) -> str:
    """A record's line, without its line end. O(what it holds)."""
    return _dump([*_pack(record), [_pack(decision) for decision in decisions]])


def decode(line: str) -> Entry:
    """What `encode` wrote; InvalidInput for anything else."""
    try:
        tag, fields, decisions = json.loads(line)
        entry = Entry(_unpack(tag, fields), [_unpack(*decision) for decision in decisions])
    except _BROKEN as error:
        raise InvalidInput(f"not a line of an event log: {line[:80]!r} ({error})") from error
    if isinstance(entry.record, Resize):
        _require_room("num_pages", entry.record.num_pages, MOST_PAGES)
    return entry


def require_room(config: SchedulerConfig) -> SchedulerConfig:
    """The config, if a replay can hold a pool and rows of its sizes; InvalidInput names the one it cannot."""
    _require_room("num_pages", config.num_pages, MOST_PAGES)
    _require_room("num_host_pages", config.num_host_pages, MOST_PAGES)
    _require_room("max_seqs", config.max_seqs, MOST_SEQS)
    return config


def _require_room(name: str, value: object, most: int) -> None:
    if isinstance(value, int) and value > most:
        raise InvalidInput(f"{name} is {value:,}; a replay supports at most {most:,}; give less, or an undamaged log")


def read_sessions(lines: Iterable[str]) -> Iterator[Session]:
    """Every session, but for a last line torn in mid-write. InvalidInput for a line that no log of this version has."""
    config, entries = None, list[Entry]()
    torn: InvalidInput | None = None
    for line in lines:
        if line.startswith('{"pagedserve_log"') and line.endswith("\n"):
            if config is not None:
                yield Session(config, entries)
            config, entries, torn = _decode_header(line), [], None
            continue
        if config is None:
            raise InvalidInput("not an event log: the first line is not its header")
        if torn is not None:
            raise torn
        try:
            if not line.endswith("\n"):
                raise InvalidInput("the line has no end")
            entries.append(decode(line))
        except InvalidInput as error:
            torn = error  # an error, unless this is the last line
    if config is None:
        raise InvalidInput("not an event log: the first line is not its header")
    yield Session(config, entries)


def read_log(lines: Iterable[str]) -> Session:
    """The last session."""
    return list(read_sessions(lines))[-1]


def _decode_header(line: str) -> SchedulerConfig:
    try:
        header = json.loads(line)
        version, fields = header["pagedserve_log"], header["config"]
        if version == VERSION:
            fields["prices"] = StepPrices(*fields["prices"])
            fields["graph_buckets"] = tuple(fields["graph_buckets"])
            return require_room(SchedulerConfig(**fields))
    except InvalidInput as error:
        raise InvalidInput(f"an event log's header that cannot be: {error}") from error
    except _BROKEN as error:
        raise InvalidInput(f"not an event log's header: {line[:80]!r} ({error})") from error
    raise InvalidInput(f"the log has version {version}; this program reads version {VERSION}")


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
    fields = dataclasses.fields(value)
    contents = [getattr(value, field.name) for field in fields]
    while contents and fields[len(contents) - 1].default is not dataclasses.MISSING:
        if contents[-1] != fields[len(contents) - 1].default:
            break
        contents.pop()
    return [type(value).__name__.lower(), contents]


def _unpack(tag: str, contents: Sequence[Any]) -> Any:
    return _TYPES[tag](*map(_restored, contents))


def _restored(content: Any) -> Any:
    if isinstance(content, list):
        return tuple(content)
    return frozenset(content["set"]) if isinstance(content, dict) and "set" in content else content
