# SPDX-License-Identifier: Apache-2.0
"""Engines without a model: they answer with the words of the question, one token a word."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedserve.engine.face import EngineStats
from pagedserve.engine.outputs import Delta, RequestMetrics
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import InvalidInput, ModelError

MAX_PROMPT_TOKENS = 200


def saved_by(out: Path, said: str, words: Sequence[str]) -> Any:
    """The numbers that a command left beside its picture; it said these words."""
    for each in words:
        assert each in said
    assert out.read_bytes().startswith(b"\x89PNG\r\n")
    return json.loads(out.with_suffix(".json").read_text())


class WordTokenizer:
    """Ids of words, in the order they were first seen."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(" ".join(f"<{m['role']}> {m['content']}" for m in messages) + " <assistant>")


def stats_of(running: int) -> EngineStats:
    counts = dict.fromkeys(EngineStats._fields, 0)
    return EngineStats(**{**counts, "running": running, "num_pages": 100, "pages_in_use": 3 * running})


@dataclass
class FakeModel:
    tokenizer: WordTokenizer
    name: str = "fake"
    weight_bytes: int = 4096
    precision: str = "f32 100%"


class FakeLLM:
    """Says the last turn of the prompt backwards; a prompt word "sleep" makes each token of the answer take a while."""

    def __init__(self, model: str, *, progress: Callable[[int, int], None] | None = None, **options: object) -> None:
        if model == "missing":
            raise ModelError("there is no model 'missing': give a GGUF file,\nor a folder")
        if progress is not None:
            progress(4096, 4096)
        self.tokenizer = WordTokenizer()
        self.model = FakeModel(self.tokenizer)
        self.options = options
        self.prompts: list[str] = []
        self.closed = False
        self.num_closed_streams = 0

    def stream(self, prompt: str | list[int] | list[dict[str, str]], params: SamplingParams) -> Iterator[Delta]:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt)
        elif isinstance(prompt[0], dict):
            prompt = self.tokenizer.encode_chat(prompt)
        if len(prompt) > MAX_PROMPT_TOKENS:
            raise InvalidInput(f"the prompt is {len(prompt)} tokens long; this engine holds {MAX_PROMPT_TOKENS}")
        self.prompts.append(" ".join(self.tokenizer.words[i] for i in prompt))
        return self._deltas(prompt, params)

    def _deltas(self, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        try:
            answer = self._answer(prompt, params)
            metrics = RequestMetrics(0.0, 0.1, 0.25, 1.25, prefix_hit_tokens=3, num_output_tokens=len(answer))
            for i, token in enumerate(answer):
                if "sleep" in self.prompts[-1]:
                    time.sleep(0.05)
                last = i == len(answer) - 1
                text = self.tokenizer.words[token] + ("" if last else " ")
                yield Delta(
                    0, text, [token], finish_reason="length" if last else None, metrics=metrics if last else None
                )
        finally:
            self.num_closed_streams += 1

    def _answer(self, prompt: list[int], params: SamplingParams) -> list[int]:
        user = max((i for i, token in enumerate(prompt) if self.tokenizer.words[token] == "<user>"), default=-1)
        said = [token for token in prompt[user + 1 :] if self.tokenizer.words[token] != "<assistant>"]
        return said[::-1][: params.max_tokens]

    def close(self) -> None:
        self.closed = True


class FakeAsyncEngine(FakeLLM):
    """The same for many tasks; counts how many are answered at the same time."""

    step_s = 0.001

    def __init__(self, model: str, **options: object) -> None:
        super().__init__(model, **options)
        self.running = self.most_running = 0
        self.salts: list[str] = []

    async def generate(
        self, prompt: list[int], params: SamplingParams, *, id: str | None = None
    ) -> AsyncIterator[Delta]:
        self.salts.append(params.cache_salt)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for delta in self.stream(prompt, params):
            await asyncio.sleep(self.step_s)
            yield delta
        self.running -= 1

    def stats(self) -> EngineStats:
        return stats_of(self.running)

    async def close(self) -> None:
        self.closed = True
