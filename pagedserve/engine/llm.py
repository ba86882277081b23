# SPDX-License-Identifier: Apache-2.0
"""The synchronous face: prompts in, outputs out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import cast

from pagedserve.engine.channels import Collector, QueueChannel, Stream
from pagedserve.engine.door import Conversation, Prompt
from pagedserve.engine.face import Face
from pagedserve.engine.outputs import RequestOutput
from pagedserve.engine.progress import Report, reporter
from pagedserve.engine.requests import Request
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import InvalidInput

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(Face):
    """A model that answers. Safe for use from several threads; close it, or use it in a `with` statement.

        with LLM("SmolLM2-135M-Instruct.Q4_1.gguf") as llm:
            print(llm.generate("The sea is", SamplingParams(temperature=0))[0].outputs[0].text)

    Arguments: as Face.
    """

    def generate(
        self,
        prompts: str | Iterable[Prompt],
        params: Params = None,
        *,
        progress: bool | Report = False,
    ) -> list[RequestOutput]:
        """Answer prompts, all at once through continuous batching.

        Args:
            prompts: a string, or a list of strings or of lists of token ids.
            params: for all of them, or one for each; None: the defaults.
            progress: True draws a line on stderr; a function is called with (prompts done, prompts in all).

        Returns:
            One RequestOutput a prompt, in their order. A request that failed or was refused on its way carries its
            error, and takes no other with it.

        Raises:
            InvalidInput: a prompt or its parameters cannot be; nothing was started.
            EngineClosed: the engine was closed before.
        """
        if not isinstance(prompts, Iterable):
            raise InvalidInput(f"prompts is a {type(prompts).__name__}; give a string, or a list of prompts")
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in given]
        names = ["the prompt"] if len(given) == 1 else [f"prompt {i}" for i in range(len(given))]
        tokens = [self._door.encode(prompt, name) for prompt, name in zip(given, names, strict=True)]
        return self._run(texts, tokens, params, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: Params = None,
        *,
        progress: bool | Report = False,
    ) -> list[RequestOutput]:
        """Answer a conversation, or a list of them, in the model's own chat form.

        Args:
            messages: {"role": ..., "content": ...} each.

        Everything else as generate.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise InvalidInput(f"messages is {messages!r}; give a list of messages, or a list of such lists")
        single = isinstance(messages[0], Mapping)
        if not all(isinstance(turns, Mapping if single else Sequence) for turns in messages):
            raise InvalidInput("messages holds what is neither a message nor a list of messages; give all of one kind")
        conversations = cast(Sequence[Conversation], [messages] if single else messages)
        names = ["the conversation"] if single else [f"conversation {i}" for i in range(len(conversations))]
        encoded = [self._door.encode_chat(turns, name) for turns, name in zip(conversations, names, strict=True)]
        return self._run([text for text, _ in encoded], [tokens for _, tokens in encoded], params, progress)

    def stream(self, prompt: Prompt | Conversation, params: SamplingParams | None = None) -> Stream:
        """Answer one prompt or conversation, as it comes.

        Returns:
            An iterator of Delta, already running. Closing or dropping it aborts the request.
        """
        tokens = self._encode(prompt)
        params = self._door.params(params)
        channel = QueueChannel()
        request = self._door.request(tokens, params, channel)
        self._core.submit(request)
        return Stream(request, channel, self._core.cancel)

    def close(self, *, drain: bool = False) -> None:
        """End: abort what runs (drain: finish it) and free the threads. Twice is harmless."""
        self._core.close(drain=drain)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, texts: list[str | None], tokens: list[list[int]], params: Params, progress: bool | Report
    ) -> list[RequestOutput]:
        done: SimpleQueue[Collector] = SimpleQueue()
        requests: list[tuple[Request, Collector]] = []
        for prompt, wanted in zip(tokens, self._spread(params, len(tokens)), strict=True):
            collector = Collector(wanted.n, done.put)
            requests.append((self._door.request(prompt, wanted, collector), collector))
        started: list[Request] = []
        try:
            for request, _ in requests:
                self._core.submit(request)
                started.append(request)
            with reporter(progress, len(requests)) as report:
                for number in range(len(requests)):
                    report(number, len(requests))
                    done.get()
                report(len(requests), len(requests))
        except BaseException:  # Ctrl-C too: whoever leaves takes their requests along
            for request in started:
                self._core.cancel(request)
            raise
        return [
            RequestOutput(
                id=request.id,
                prompt=text,
                prompt_token_ids=request.prompt_token_ids,
                outputs=collector.completions,
                metrics=request.completions[0].metrics,
                error=collector.error,
            )
            for text, (request, collector) in zip(texts, requests, strict=True)
        ]

    def _spread(self, params: Params, count: int) -> list[SamplingParams]:
        """One SamplingParams for each prompt."""
        if params is None or isinstance(params, SamplingParams):
            return [self._door.params(params)] * count
        if not isinstance(params, Sequence) or len(params) != count:
            what = f"{len(params)} of them" if isinstance(params, Sequence) else f"a {type(params).__name__}"
            raise InvalidInput(f"params is {what} for {count} prompts; give one SamplingParams, or one for each prompt")
        return [self._door.params(each) for each in params]
