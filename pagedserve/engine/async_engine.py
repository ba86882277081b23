# SPDX-License-Identifier: Apache-2.0
"""The asyncio face: many callers, each with a stream of their own."""

from __future__ import annotations

import asyncio
from typing import Any

from pagedserve.engine.channels import AsyncChannel, AsyncStream, Mailboxes
from pagedserve.engine.door import Conversation, Prompt
from pagedserve.engine.face import Face
from pagedserve.engine.sampling import SamplingParams

MAX_QUEUE = 1024  # requests that may wait to start


class AsyncEngine(Face):
    """A model that answers many callers at once. The loop runs in a thread of its own; callers never wait for another.

        async with AsyncEngine("SmolLM2-135M-Instruct.Q4_1.gguf") as engine:
            async for delta in engine.generate("The sea is"):
                print(delta.text, end="")

    Arguments: as Face; but max_queue is MAX_QUEUE unless given.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("max_queue", MAX_QUEUE)
        super().__init__(*args, **options)
        self._mailboxes = Mailboxes()

    def generate(
        self,
        prompt: Prompt | Conversation,
        params: SamplingParams | None = None,
        *,
        id: str | None = None,
    ) -> AsyncStream:
        """Answer one prompt, as it comes. Call it on a running event loop.

        Args:
            prompt: a string, a list of token ids, or a list of messages {"role": ..., "content": ...}.
            params: None: the defaults.
            id: for abort, and to come back with after a RequestRejected; unique among the requests in the engine.
                None: the engine makes one (the stream's id).

        Returns:
            An async iterator of Delta, already running. Cancelling its consumer, closing or dropping it aborts it.

        Raises:
            InvalidInput: the prompt, the parameters or the id cannot be; other requests go on.
            EngineClosed: the engine was closed, or died.
            RequestRejected, StepError: from the iteration.
        """
        tokens = self._encode(prompt)
        params = self._door.params(params)
        channel = AsyncChannel(self._mailboxes.of_running_loop())
        request = self._door.request(tokens, params, channel, id=id)
        self._core.submit(request)
        return AsyncStream(request, channel, self._core.cancel)

    def abort(self, id: str) -> bool:
        """End a request; its stream ends with finish_reason "abort". False where there is none of this id."""
        return self._core.abort(id)

    async def close(self, *, drain: bool = False) -> None:
        """End: abort what runs (drain: finish it) and free the threads. Twice is harmless.

        Consumers of what was aborted raise nothing: their streams end with finish_reason "abort".
        """
        await asyncio.to_thread(self._core.close, drain=drain)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
