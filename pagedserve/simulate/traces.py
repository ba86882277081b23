# SPDX-License-Identifier: Apache-2.0
"""Recorded requests, read as they are asked for.

| format | a row |
|---|---|
| mooncake | JSON: timestamp (ms), input_length, output_length, hash_ids: ids of the prompt's blocks of 512 tokens |
| burstgpt | CSV: Timestamp (s), Request tokens, Response tokens, and columns that are not read |
| azure | CSV: TIMESTAMP (date and time), ContextTokens, GeneratedTokens |

Times count from the first row. Two prompts share a prefix where their hash_ids do, and nowhere else. A row without
output tokens is a request that the recorded service failed; it is left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from os import PathLike
from typing import Any, overload

from pagedserve.errors import InvalidInput
from pagedserve.simulate.workload import NO_SLO, Request, Slo, unique_prompt

MOONCAKE_BLOCK_TOKENS = 512


class BlockPrompt(Sequence[int]):
    """A prompt by its blocks: block b of the recording is always the same tokens. Holds ids, not tokens."""

    __slots__ = ("_blocks", "_num_tokens")

    def __init__(self, blocks: Sequence[int], num_tokens: int) -> None:
        self._blocks = tuple(blocks)
        self._num_tokens = num_tokens

    def __len__(self) -> int:
        return self._num_tokens

    def __iter__(self) -> Iterator[int]:
        size = MOONCAKE_BLOCK_TOKENS
        blocks = (range(block * size, (block + 1) * size) for block in self._blocks)
        return islice(chain.from_iterable(blocks), self._num_tokens)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        places = range(self._num_tokens)[index]
        size = MOONCAKE_BLOCK_TOKENS
        if isinstance(places, range):
            return [self._blocks[place // size] * size + place % size for place in places]
        return self._blocks[places // size] * size + places % size


Row = tuple[float, Sequence[int], int]  # seconds on the recording's clock, prompt, output tokens


def read_trace(
    path: str | PathLike[str], format: str = "auto", *, slo: Slo = NO_SLO, speed: float = 1.0, limit: int | None = None
) -> Iterator[Request]:
    """The requests of a file, in the order of their arrival.

    Args:
        format: mooncake, burstgpt or azure; auto looks at the first line.
        speed: 2 plays the recording twice as fast.
        limit: rows to read; None: all.

    Raises:
        InvalidInput: the file cannot be read or a row is not of the format; the message gives its line.
    """
    if not speed > 0:
        raise InvalidInput(f"speed is {speed}; give a number above 0")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            first = file.readline()
            name = _guess(first, path) if format == "auto" else format
            if name not in _READERS:
                raise InvalidInput(f"trace format {format!r}; supported: auto, {', '.join(_READERS)}")
            start_s = last_s = -float("inf")
            for t, prompt, output_tokens in islice(_rows(_READERS[name], chain([first], file), path), limit):
                start_s = t if start_s == -float("inf") else start_s
                last_s = max(last_s, t)  # recordings of several machines are out of order by a hair
                if output_tokens > 0 and len(prompt) > 0:
                    yield Request((last_s - start_s) / speed, prompt, output_tokens, slo)
    except OSError as error:
        raise InvalidInput(f"the trace {str(path)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the trace {str(path)!r} is not text: {error}") from error


def mooncake_line(arrival_s: float, prompt_tokens: int, output_tokens: int, blocks: Sequence[int]) -> str:
    """A row in Mooncake's format, without its line end."""
    row = {
        "timestamp": round(arrival_s * 1e3),
        "input_length": prompt_tokens,
        "output_length": output_tokens,
        "hash_ids": list(blocks),
    }
    return json.dumps(row)


def _guess(line: str, path: str | PathLike[str]) -> str:
    text = line.lstrip("\ufeff").strip()
    if text.startswith("{"):
        return "mooncake"
    columns = {column.strip() for column in text.split(",")}
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= columns:
        return "azure"
    if {"Timestamp", "Request tokens", "Response tokens"} <= columns:
        return "burstgpt"
    raise InvalidInput(
        f"the trace {str(path)!r} begins with {text[:60]!r}, which is none of {', '.join(_READERS)}; give its format"
    )


def _rows(
    read: Callable[[Iterable[str]], Iterator[Row]], lines: Iterable[str], path: str | PathLike[str]
) -> Iterator[Row]:
    number = 0

    def counted() -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(lines, start=1):
            yield line.lstrip("\ufeff") if number == 1 else line

    try:
        yield from read(counted())
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InvalidInput(f"line {number} of the trace {str(path)!r} is not of its format: {error}") from error


def _mooncake(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        if line.strip():
            row: dict[str, Any] = json.loads(line)
            length, blocks = int(row["input_length"]), [int(block) for block in row["hash_ids"]]
            if len(blocks) * MOONCAKE_BLOCK_TOKENS < length:
                raise ValueError(f"{len(blocks)} hash_ids of {MOONCAKE_BLOCK_TOKENS} tokens for {length} tokens")
            yield float(row["timestamp"]) / 1e3, BlockPrompt(blocks, length), int(row["output_length"])


def _burstgpt(lines: Iterable[str]) -> Iterator[Row]:
    for number, row in enumerate(csv.DictReader(lines)):
        yield float(_cell(row, "Timestamp")), *_lengths(number, row, "Request tokens", "Response tokens")


def _azure(lines: Iterable[str]) -> Iterator[Row]:
    for number, row in enumerate(csv.DictReader(lines)):
        yield _date_s(_cell(row, "TIMESTAMP")), *_lengths(number, row, "ContextTokens", "GeneratedTokens")


def _lengths(number: int, row: Mapping[str, str | None], prompt: str, output: str) -> tuple[Sequence[int], int]:
    return unique_prompt(number, int(float(_cell(row, prompt)))), int(float(_cell(row, output)))


def _cell(row: Mapping[str, str | None], column: str) -> str:
    value = row[column]
    if value is None:
        raise ValueError(f"there is no {column}")
    return value


def _date_s(text: str) -> float:
    """Seconds of a date with any number of decimals, with or without a zone."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no date and time")
    # Only differences count, and a recording keeps to one zone.
    since = datetime.fromisoformat(match[1].replace(" ", "T")) - datetime(2000, 1, 1)
    return since.total_seconds() + float(match[2] or 0.0)


_READERS: dict[str, Callable[[Iterable[str]], Iterator[Row]]] = {
    "mooncake": _mooncake,
    "burstgpt": _burstgpt,
    "azure": _azure,
}
