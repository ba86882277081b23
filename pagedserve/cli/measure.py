# SPDX-License-Identifier: Apache-2.0
"""What the demo's users feel: when their words came, taken at the caller's side of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

SAMPLE_EVERY_S = 0.1


class Engine(Protocol):
    """What a phase needs of an engine; `AsyncEngine` is one."""

    def generate(self, prompt: Sequence[int], params: Any, *, id: str | None = None) -> Any: ...

    def stats(self) -> Any: ...


@dataclass(slots=True)
class Answer:
    """One user's answer. Times are seconds since the phase began.

    Attributes:
        asked_s, first_s, last_s: when the question was put, when its first and its last token came.
        arrivals: (time, tokens) of each delta.
        prefix_hit_tokens: prompt tokens that were already there from another's prompt.
    """

    number: int
    prompt: str
    num_prompt_tokens: int
    asked_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    finish_reason: str | None = None
    prefix_hit_tokens: int = 0
    preemptions: int = 0

    @property
    def ttft_s(self) -> float | None:
        """From the question to the first token."""
        return None if self.first_s is None else self.first_s - self.asked_s

    @property
    def tpot_s(self) -> float | None:
        """Between tokens after the first, on average; None below two tokens."""
        if self.first_s is None or self.last_s is None or len(self.token_ids) < 2:
            return None
        return (self.last_s - self.first_s) / (len(self.token_ids) - 1)

    @property
    def total_s(self) -> float | None:
        """From the question to the last token."""
        return None if self.last_s is None else self.last_s - self.asked_s


@dataclass(frozen=True, slots=True)
class Sample:
    """The engine at one moment of a phase."""

    t_s: float
    running: int
    waiting: int
    pages_in_use: int


@dataclass(slots=True)
class Phase:
    """The same users' questions, put in one way.

    Attributes:
        at_once: all questions at the same moment; otherwise each when the one before is answered.
        duration_s: until the last token of the last answer.
        num_pages: that the engine has.
        model_s: for which the model ran, sampling included; the rest is the engine's own, and the caller's.
    """

    name: str
    at_once: bool
    answers: list[Answer] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    duration_s: float = 0.0
    num_pages: int = 0
    model_s: float = 0.0

    @property
    def num_output_tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.num_output_tokens / self.duration_s if self.duration_s else 0.0

    def rate(self, window_s: float = 2.0) -> float:
        """Output tokens a second over the last `window_s` seconds, as of the latest sample."""
        latest = self.samples[-1].t_s if self.samples else 0.0
        since = max(0.0, latest - window_s)
        recent = sum(n for answer in self.answers for t, n in reversed_until(answer.arrivals, since))
        return recent / (latest - since) if latest > since else 0.0


def now() -> float:
    """Seconds, as the running event loop counts them."""
    return asyncio.get_running_loop().time()


def reversed_until(arrivals: list[tuple[float, int]], since: float) -> list[tuple[float, int]]:
    """The arrivals after `since`, the latest first."""
    recent = []
    for arrival in reversed(arrivals):
        if arrival[0] <= since:
            break
        recent.append(arrival)
    return recent


async def run_phase(
    engine: Engine,
    phase: Phase,
    prompts: Sequence[Sequence[int]],
    params: Any,
    changed: Callable[[], None] = lambda: None,
) -> Phase:
    """Put every prompt of a phase to the engine and note when what came.

    Args:
        phase: its answers stand in the order of prompts; filled in here.
        prompts: token ids of each.
        params: SamplingParams of all.
        changed: called after each delta.
    """
    began = now()
    before = engine.stats()
    phase.num_pages = before.num_pages
    async with watching(engine, began, phase.samples.append):
        if phase.at_once:
            users = (_ask(engine, answer, prompt, params, began, changed) for answer, prompt in _pairs(phase, prompts))
            await asyncio.gather(*users)
        else:
            for answer, prompt in _pairs(phase, prompts):
                await _ask(engine, answer, prompt, params, began, changed)
    phase.duration_s = max((answer.last_s or 0.0 for answer in phase.answers), default=0.0)
    phase.model_s = engine.stats().step_s - before.step_s
    phase.samples.append(Sample(phase.duration_s, 0, 0, 0))
    return phase


def _pairs(phase: Phase, prompts: Sequence[Sequence[int]]) -> list[tuple[Answer, Sequence[int]]]:
    return list(zip(phase.answers, prompts, strict=True))


async def timed(
    engine: Engine, prompt: Sequence[int], params: Any, began: float, id: str | None = None
) -> AsyncIterator[tuple[float, Any]]:
    """The deltas of an answer, each with the second since `began` at which it came."""
    async with aclosing(engine.generate(prompt, params, id=id)) as deltas:
        async for delta in deltas:
            yield now() - began, delta


async def _ask(
    engine: Engine, answer: Answer, prompt: Sequence[int], params: Any, began: float, changed: Callable[[], None]
) -> None:
    answer.asked_s = now() - began
    async with aclosing(timed(engine, prompt, params, began)) as deltas:
        async for t, delta in deltas:
            if delta.token_ids:
                answer.first_s = t if answer.first_s is None else answer.first_s
                answer.last_s = t
                answer.arrivals.append((t, len(delta.token_ids)))
                answer.token_ids += delta.token_ids
            answer.text += delta.text
            if delta.finish_reason is not None:
                answer.finish_reason = delta.finish_reason
            if delta.metrics is not None:
                answer.prefix_hit_tokens = delta.metrics.prefix_hit_tokens
                answer.preemptions = delta.metrics.preemptions
            changed()


@asynccontextmanager
async def watching(engine: Engine, began: float, note: Callable[[Sample], object]) -> AsyncIterator[None]:
    """note is given a sample of the engine every SAMPLE_EVERY_S, meanwhile."""

    async def watch() -> None:
        while True:
            stats = engine.stats()
            note(Sample(now() - began, stats.running, stats.waiting, stats.pages_in_use))
            await asyncio.sleep(SAMPLE_EVERY_S)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
