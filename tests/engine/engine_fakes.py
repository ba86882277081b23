# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of bytes, and a runner that says what it is told to: the engine without a model; an oracle of stops."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pagedserve.engine.async_engine import AsyncEngine
from pagedserve.engine.channels import Mailboxes
from pagedserve.engine.core import EngineCore
from pagedserve.engine.door import Door
from pagedserve.engine.llm import LLM
from pagedserve.engine.requests import CompletionState, StepTokens
from pagedserve.models.tokenizer import Detokenizer
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import StepPlan
from pagedserve.scheduling.scheduler import Scheduler

EOS = 256
VOCAB_SIZE = 257


def stopped(text: str, stops: list[str], armed_from: int = 0) -> tuple[str, str | None]:
    """Try every prefix of the text, the shortest first; at each, the longest stop string first."""
    for end in range(armed_from + 1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


class ByteTokenizer:
    """Ids are UTF-8 bytes; 256 ends a text."""

    vocab_size = VOCAB_SIZE
    eos_ids = special_ids = frozenset({EOS})

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def render_chat(self, messages) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def piece(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<eos>"


def echo(completion: CompletionState, num_output: int) -> int:
    """The prompt again and again; then, where it holds a '.', the end of the text."""
    prompt = completion.request.prompt_token_ids
    token = prompt[num_output % len(prompt)]
    return EOS if token == ord(".") else token


class FakeRunner:
    """Says say(completion, tokens said so far), and checks that the plans make sense.

    Args:
        say: the token; -1: it could not be computed.
        before_step: called with each plan; may block, or raise to fail the step.
        step_s: how long a step takes.
    """

    def __init__(
        self,
        say: Callable[[CompletionState, int], int] = echo,
        before_step: Callable[[StepPlan], None] = lambda plan: None,
        step_s: float = 0.0,
    ) -> None:
        self.say = say
        self.before_step = before_step
        self.step_s = step_s
        self.completions: dict[str, CompletionState] = {}
        self.said: dict[str, int] = {}
        self.plans: list[StepPlan] = []

    def add(self, completion: CompletionState) -> None:
        self.completions[completion.id] = completion
        self.said[completion.id] = 0

    def forget(self, id: str) -> None:
        del self.completions[id]
        del self.said[id]

    def prepare(self, plan: StepPlan) -> None:
        rows = [*plan.decode_rows, *(chunk.row for chunk in plan.chunks)]
        assert len(rows) == len(set(rows))
        self.plans.append(plan)

    def run(self, plan: StepPlan) -> StepTokens:
        self.before_step(plan)
        if self.step_s:
            time.sleep(self.step_s)
        ids = [*plan.decode_ids, *(chunk.id for chunk in plan.chunks if chunk.samples)]
        tokens = [self.say(self.completions[id], self.said[id]) for id in ids]
        for id in ids:
            self.said[id] += 1
        logprobs = np.array([-0.5 - token for token in tokens], np.float32)
        top_tokens = np.tile(np.arange(20, dtype=np.int32), (len(ids), 1))
        failed = tuple(id for id, token in zip(ids, tokens, strict=True) if token < 0)
        return StepTokens(tokens, failed, logprobs, top_tokens, -top_tokens.astype(np.float32))


def make_config(**changes) -> SchedulerConfig:
    limits = {"num_pages": 256, "page_size": 4, "max_seqs": 8, "max_step_tokens": 32, "max_model_len": 256} | changes
    return SchedulerConfig(**limits)


def make_core(runner: FakeRunner | None = None, *, observer=None, **changes) -> tuple[EngineCore, Door, Scheduler]:
    """A core on a fake runner, the door to it, and its scheduler."""
    config = make_config(**changes)
    scheduler = Scheduler(config)
    core = EngineCore(scheduler, FakeRunner() if runner is None else runner, observer=observer)
    tokenizer = ByteTokenizer()
    door = Door(
        tokenizer,
        lambda skip_special: Detokenizer(tokenizer, skip_special=skip_special),
        vocab_size=VOCAB_SIZE,
        max_model_len=config.max_model_len,
        seed=0,
        clock=core.clock,
    )
    return core, door, scheduler


class FakeLLM(LLM):
    """An LLM on a fake runner."""

    def __init__(self, runner: FakeRunner | None = None, **changes) -> None:
        self._start(*make_core(runner, **changes))


class FakeAsyncEngine(AsyncEngine):
    """An AsyncEngine on a fake runner."""

    def __init__(self, runner: FakeRunner | None = None, **changes) -> None:
        self._mailboxes = Mailboxes()
        self._start(*make_core(runner, **changes))


def program(code: str) -> str:
    """Code for another interpreter, to which this file is known."""
    return f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{textwrap.dedent(code)}"
