# SPDX-License-Identifier: Apache-2.0
"""Channels: how deltas leave the engine's threads, without ever making them wait."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from pagedserve.engine.outputs import Completion, Delta
from pagedserve.engine.requests import Request
from pagedserve.errors import PagedServeError


class Collector:
    """Gathers whole completions; tells done once, when nothing more comes."""

    def __init__(self, num_completions: int, done: Callable[[Collector], None]) -> None:
        self.completions = [Completion(index) for index in range(num_completions)]
        self.error: PagedServeError | None = None
        self._open = num_completions
        self._done = done

    def put(self, delta: Delta) -> None:
        self.completions[delta.index].extend(delta)
        if delta.finish_reason is not None:
            self._open -= 1
            if not self._open:
                self._done(self)

    def fail(self, error: PagedServeError) -> None:
        self.error = error
        for completion in self.completions:
            if completion.finish_reason is None:
                completion.finish_reason = "error"
        self._done(self)


class QueueChannel:
    """Holds deltas until a thread takes them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Delta | PagedServeError] = SimpleQueue()

    def put(self, delta: Delta) -> None:
        self._queue.put(delta)

    def fail(self, error: PagedServeError) -> None:
        self._queue.put(error)

    def take(self) -> Delta | PagedServeError:
        """What comes next; waits for it."""
        return self._queue.get()


class Deltas:
    """One request's deltas on the caller's side. Closing or dropping it early aborts the request."""

    def __init__(self, request: Request, cancel: Callable[[Request], object]) -> None:
        self.id = request.id
        self._open = request.params.n
        self._request = request
        self._cancel = cancel

    def _checked(self, item: Delta | PagedServeError) -> Delta:
        """What came, counted; what became of the request is raised."""
        if isinstance(item, PagedServeError):
            self._open = 0
            raise item
        if item.finish_reason is not None:
            self._open -= 1
        return item

    def close(self) -> None:
        """Take no more; the request is aborted if it is not over."""
        if self._open:
            self._open = 0
            self._cancel(self._request)

    def __del__(self) -> None:
        self.close()


class Stream(Deltas):
    """Deltas of one request, as they come, in the caller's thread.

    Raises from its iteration what became of the request: RequestRejected, StepError, EngineClosed.
    """

    def __init__(self, request: Request, channel: QueueChannel, cancel: Callable[[Request], object]) -> None:
        super().__init__(request, cancel)
        self._channel = channel

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Delta:
        if not self._open:
            raise StopIteration
        try:
            item = self._channel.take()
        except BaseException:
            self.close()
            raise
        return self._checked(item)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Mailbox:
    """Wakes an event loop from the engine's threads: once for all the channels a step has news for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: deque[AsyncChannel] = deque()
        self._waking = False

    def post(self, channel: AsyncChannel) -> None:
        """From an engine thread: this channel has news."""
        self._news.append(channel)
        if not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the event loop is closed: whoever posts must hear of it, every time
                self._waking = False
                raise

    def _deliver(self) -> None:
        self._waking = False  # before the news is taken, so that news from now on wakes again
        while self._news:
            self._news.popleft().wake()


class AsyncChannel:
    """Holds deltas until a task of one event loop takes them; what has piled up is taken as one delta."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._arrived: deque[Delta] = deque()  # engine threads append, the event loop takes
        self._merged: dict[int, Delta] = {}
        self._error: PagedServeError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        self._arrived.append(delta)
        self._mailbox.post(self)

    def fail(self, error: PagedServeError) -> None:
        self._error = error
        self._mailbox.post(self)

    def wake(self) -> None:
        """On the event loop: there is news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> Delta | PagedServeError:
        """Everything new of one completion; waits for it. An error comes after the deltas before it."""
        while True:
            while self._arrived:
                delta = self._arrived.popleft()
                if delta.index in self._merged:
                    self._merged[delta.index].extend(delta)
                else:
                    self._merged[delta.index] = delta
            if self._merged:
                return self._merged.pop(next(iter(self._merged)))
            if self._error is not None:
                return self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class AsyncStream(Deltas):
    """Deltas of one request for one asyncio task; cancelling that task aborts the request, too.

    A consumer that is slower than the engine gets the tokens it missed in one delta; nobody waits for it.
    Raises from its iteration what became of the request: RequestRejected, StepError, EngineClosed.
    """

    def __init__(self, request: Request, channel: AsyncChannel, cancel: Callable[[Request], object]) -> None:
        super().__init__(request, cancel)
        self._channel = channel

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Delta:
        if not self._open:
            raise StopAsyncIteration
        try:
            item = await self._channel.take()
        except BaseException:
            self.close()
            raise
        return self._checked(item)

    async def aclose(self) -> None:
        """As close."""
        self.close()


class Mailboxes:
    """One mailbox for each event loop that asks."""

    def __init__(self) -> None:
        self._boxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()

    def of_running_loop(self) -> Mailbox:
        """Of the loop this is called on."""
        loop = asyncio.get_running_loop()
        box = self._boxes.get(loop)
        if box is None:
            box = self._boxes[loop] = Mailbox(loop)
        return box
