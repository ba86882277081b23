# SPDX-License-Identifier: Apache-2.0
"""Writes what a scheduler is told, and decides, to a file as it happens."""

from __future__ import annotations

import os
import warnings
from os import PathLike

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import encode, encode_header
from pagedserve.eventlog.watched import Record
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision

_MAGIC = b'{"pagedserve_log"'


class EventLog:
    """An on_event of a WatchedScheduler: a line for each record, written as it happens.

    Appends a session to the file, which is made where there is none. What a crash left there stays; a line that it tore
    is cut off first. A disk that fails ends the log with a warning, never the engine.

    Raises:
        InvalidInput: the file cannot be opened for writing.
    """

    def __init__(self, path: str | PathLike[str], config: SchedulerConfig) -> None:
        self._path = path
        try:
            _cut_torn_line(path)
            self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 closed by close()
        except OSError as error:
            raise InvalidInput(f"event_log {str(path)!r} cannot be written: {error.strerror or error}") from error
        self._write(encode_header(config))

    def __call__(self, record: Record, decisions: list[Decision]) -> None:
        if not self._file.closed:
            self._write(encode(record, decisions))

    def close(self) -> None:
        """End the log."""
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)

    def _write(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
        except OSError as error:
            self._warn(error)
            self.close()

    def _warn(self, error: OSError) -> None:
        warnings.warn(f"the event log {str(self._path)!r} ends here: {error.strerror or error}", stacklevel=2)


def _cut_torn_line(path: str | PathLike[str]) -> None:
    """Leave the file with whole lines; one that is missing is none."""
    if not os.path.isfile(path):
        return
    with open(path, "rb+") as file:
        start = file.read(len(_MAGIC))
        if start and start != _MAGIC:
            raise InvalidInput(f"event_log {str(path)!r} is another kind of file; give a new path, or an event log")
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            end = begin + place + 1 if place >= 0 else begin
            if place >= 0:
                break
        file.truncate(end)
