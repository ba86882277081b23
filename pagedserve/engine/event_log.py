# SPDX-License-Identifier: Apache-2.0
"""Writes what the scheduler is told to a file, from which scheduling.log replays it."""

from __future__ import annotations

import warnings
from os import PathLike

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision, Record
from pagedserve.scheduling.log import encode, encode_header


class EventLog:
    """An on_event of the scheduler: a line for each record, written as it happens.

    A disk that fails ends the log with a warning, never the engine.

    Raises:
        InvalidInput: the file cannot be opened for writing.
    """

    def __init__(self, path: str | PathLike[str], config: SchedulerConfig) -> None:
        self._path = path
        try:
            self._file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 closed by close()
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
