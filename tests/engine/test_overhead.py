# SPDX-License-Identifier: Apache-2.0
"""What the engine costs beside the model: processor time of all its threads per step, on a model that costs nothing."""

import asyncio
import time

import pytest
import torch

from pagedserve import SamplingParams
from pagedserve.engine.runner import ModelRunner
from pagedserve.ops import StepInputs, StepLimits
from tests.engine.engine_fakes import VOCAB_SIZE, FakeAsyncEngine, FakeLLM

NUM_STEPS = 200
PROMPT = list(range(1, 33))
PARAMS = SamplingParams(max_tokens=NUM_STEPS, temperature=0, ignore_eos=True)
SIZES = {"num_pages": 2000, "page_size": 16, "max_seqs": 64, "max_step_tokens": 512}

# Users at once -> microseconds, three times what is wanted, because coverage traces every line. Wanted are, at 64
# users, 5 % of the demo model's step of 40 ms on two cores; at 1 user, a tenth of a step of 4 ms.
BUDGET_US = {1: 3 * 400, 64: 3 * 2000}


class FreeStep:
    """Always the same logits."""

    def __init__(self) -> None:
        limits = StepLimits(max_tokens=512, max_seqs=64, max_pages=16, max_rows=64)
        self.inputs = StepInputs(limits)
        self._logits = torch.zeros(limits.max_rows, VOCAB_SIZE)

    def run(self, num_tokens, num_seqs, num_rows):
        return self._logits[:num_rows]


class FreePool:
    page_size = 16

    def copy(self, pairs):
        pass


def free_runner() -> ModelRunner:
    return ModelRunner(FreeStep(), FreePool(), max_len=256, backend="cpu")


def generate(users: int) -> int:
    with FakeLLM(free_runner(), **SIZES) as llm:
        llm.generate([PROMPT] * users, PARAMS)
        return llm.stats().steps


def stream(users: int) -> int:
    async def read(engine):
        async for _ in engine.generate(PROMPT, PARAMS):
            pass

    async def main():
        async with FakeAsyncEngine(free_runner(), **SIZES) as engine:
            await asyncio.gather(*(read(engine) for _ in range(users)))
            return engine.stats().steps

    return asyncio.run(main())


@pytest.mark.parametrize("users", BUDGET_US)
@pytest.mark.parametrize("face", [generate, stream])
def test_host_time_per_step(face, users, monkeypatch, record_property):
    monkeypatch.setenv("PAGEDSERVE_THREADS", "1")
    best_us = float("inf")
    for _ in range(4):
        began = time.process_time()
        steps = face(users)
        best_us = min(best_us, (time.process_time() - began) / steps * 1e6)
    record_property("us_per_step", best_us)
    print(f"{face.__name__}, {users} users: {best_us:.0f} us a step")
    assert best_us < BUDGET_US[users]
