# SPDX-License-Identifier: Apache-2.0
"""Two engines take turns on one machine, each with a clock and an event loop that stand still in the other's turn.

So both have the machine's every mood in equal shares, and neither waits for the other, as its own clock tells.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

from pagedserve.engine.observer import Unobserved

SLICE_S = 0.05  # of a turn, which ends with the step that is computed then
T = TypeVar("T")
U = TypeVar("U")


class Clock:
    """Seconds that can be stopped; from any thread, and never backwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._behind_s = 0.0
        self._stopped_s: float | None = None

    def __call__(self) -> float:
        with self._lock:
            return time.monotonic() - self._behind_s if self._stopped_s is None else self._stopped_s

    def stop(self) -> None:
        """Stand still; twice is harmless."""
        with self._lock:
            if self._stopped_s is None:
                self._stopped_s = time.monotonic() - self._behind_s

    def go(self) -> None:
        """Go on from where it stands; twice is harmless."""
        with self._lock:
            if self._stopped_s is not None:
                self._behind_s, self._stopped_s = time.monotonic() - self._stopped_s, None


class Side(Unobserved, Generic[T]):
    """One of the two: give its engine `clock` as its clock, and the side itself as its observer.

    Args:
        body: what it does, on an event loop of its own whose time is that of `clock`.
    """

    def __init__(self, body: Callable[[Side[T]], Coroutine[Any, Any, T]]) -> None:
        self.clock = Clock()
        self.clock.stop()
        self._body = body
        self._loop: _Loop | None = None
        self._task: asyncio.Task[T] | None = None
        self._began_s = self.clock()
        self._asked = False  # to park at the end of this step
        self._cancelled = False
        self._stands = threading.Event()  # parked, or over
        self._turn = threading.Event()

    def used_s(self) -> float:
        """Seconds of its own, so far."""
        return self.clock() - self._began_s

    def stepped(self, num_tokens: int, seconds: float) -> None:
        """In the engine's thread, behind each step: who is asked to stands here, and its event loop as well."""
        if self._asked:
            self.clock.stop()
            self._turn.clear()
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._turn.wait)
            self._stands.set()
            self._turn.wait()
            self.clock.go()

    def run(self) -> T:
        """The body, to its end; in a thread of its own."""
        self._loop = _Loop(self.clock)
        self.clock.go()
        try:
            self._task = self._loop.create_task(self._body(self))
            if self._cancelled:
                self._task.cancel()
            return self._loop.run_until_complete(self._task)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self.clock.stop()
            self._stands.set()

    def park(self) -> None:
        """Ask it to stand behind its step, and wait until it does or is over. While nothing is computed it goes on."""
        self._asked = True
        self._stands.wait()

    def resume(self) -> None:
        """Let it go on."""
        self._asked = False
        self._stands.clear()
        self._turn.set()

    def cancel(self) -> None:
        """Let it go on, to its end."""
        self._cancelled = True
        self.resume()
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with suppress(RuntimeError):  # it is over, and its event loop closed
                loop.call_soon_threadsafe(task.cancel)


def in_turns(
    main: Callable[[Side[T]], Coroutine[Any, Any, T]],
    beside: Callable[[Side[U]], Coroutine[Any, Any, U]],
    slice_s: float = SLICE_S,
) -> tuple[T, U]:
    """What main returns, and what beside does that is cancelled when main is over, or ends before that.

    The turn is that of the side which had less time until now.
    """
    first, second = Side(main), Side(beside)
    futures: dict[Side[Any], Future[Any]] = {}
    with ThreadPoolExecutor(2, thread_name_prefix="turns") as pool:
        try:
            while first not in futures or not futures[first].done():
                going: list[Side[Any]] = [
                    side for side in (first, second) if side not in futures or not futures[side].done()
                ]
                side = min(going, key=Side.used_s)
                if side in futures:
                    side.resume()
                else:
                    futures[side] = pool.submit(side.run)
                wait([futures[side]], timeout=slice_s)
                side.park()
                if futures[side].done():
                    futures[side].result()  # raises what ended it, if anything did
        finally:
            for side in futures:
                side.cancel()
    return futures[first].result(), futures[second].result()


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock()
