# SPDX-License-Identifier: Apache-2.0
"""Our own engine, through the asyncio face that a server would use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy
import torch

import pagedserve
from bench.peers.protocol import serve
from bench.workload import Emit
from pagedserve import ops
from pagedserve.cache import KVPool
from pagedserve.engine import AsyncEngine, SamplingParams
from pagedserve.engine.parts import KV_DTYPES

PAGE_SIZE = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "as-shipped": {"kv_dtype": "bfloat16"},
    "int8-kv": {"kv_dtype": "int8"},
    "int4-kv": {"kv_dtype": "int4"},
    "q8": {"quantize": "q8", "kv_dtype": "bfloat16"},
    "bf16": {"dtype": "bfloat16", "kv_dtype": "bfloat16"},
    "f32": {"dtype": "float32", "kv_dtype": "float32"},
}


class PagedServe:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        options = VARIANTS[variant]
        self.version = pagedserve.__version__
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEngine(model, page_size=PAGE_SIZE, **options)
        self._kv_dtype = KV_DTYPES[options["kv_dtype"]]
        self.precision = f"{self._engine.model.precision}, KV {options['kv_dtype']}"
        self._news = asyncio.Event()
        self._emit: Emit | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        task = self._loop.create_task(self._consume(request, list(prompt), params))
        self._tasks.add(task)

    async def _consume(self, request: int, prompt: list[int], params: SamplingParams) -> None:
        async for delta in self._engine.generate(prompt, params):
            if delta.token_ids:
                assert self._emit is not None  # the loop runs inside step() alone
                self._emit(request, delta.token_ids)
                self._news.set()

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        self._emit = emit
        self._loop.run_until_complete(self._wait(timeout_s))

    async def _wait(self, timeout_s: float | None) -> None:
        waiting = asyncio.ensure_future(self._news.wait())
        done, _ = await asyncio.wait({waiting, *self._tasks}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._news.clear()
        for task in done - {waiting}:
            self._tasks.discard(task)
            task.result()  # a request that failed ends the run here, with its reason

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> numpy.ndarray:
        """One prompt in one step, every token's logits kept, over pages of its own."""
        loaded, count = self._engine.model, len(token_ids)
        num_pages = -(-count // PAGE_SIZE)
        config = loaded.config
        pool = KVPool(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            dtype=self._kv_dtype,
        )
        limits = ops.StepLimits(max_tokens=count, max_seqs=1, max_pages=num_pages, max_rows=count)
        step = loaded.model.build(ops.step_builder("auto", limits), pool.layers())
        places = torch.arange(count)
        step.inputs.token_ids.copy_(torch.tensor(list(token_ids)))
        for name in ("positions", "slot_mapping", "logit_rows"):
            getattr(step.inputs, name).copy_(places)
        step.inputs.q_starts.copy_(torch.tensor([0, count]))
        step.inputs.kv_lens.fill_(count)
        step.inputs.page_table.copy_(torch.arange(num_pages)[None])
        return step.run(count, 1, count).float().numpy()


if __name__ == "__main__":
    serve(PagedServe)
