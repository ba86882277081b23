# SPDX-License-Identifier: Apache-2.0
"""One thread that works on the last step's outputs while the next step is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class HelperThread(Generic[Work, Result]):
    """At most one piece of work at a time: give() starts it, take() waits for it.

    The model's step gives up Python's lock, so the two really run at once.
    """

    def __init__(self, handle: Callable[[Work], Result], name: str) -> None:
        self._handle = handle
        self._work: SimpleQueue[tuple[Work] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def give(self, work: Work) -> None:
        """Start on this. The last work's result must have been taken."""
        self._busy = True
        self._work.put((work,))

    def take(self) -> Result | None:
        """Wait for the work given last, and return its result, or raise what it raised; None where none was given."""
        if not self._busy:
            return None
        result, error = self._results.get()
        self._busy = False
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Let the thread end, after the work given last."""
        self._work.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            try:
                self._results.put((self._handle(item[0]), None))
            except BaseException as error:
                self._results.put((None, error))
