# SPDX-License-Identifier: Apache-2.0
"""transformers' generate: all who wait go into one batch, padded on the left, and the batch runs to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
import transformers

from bench.peers.protocol import serve
from bench.workload import Emit

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Streamer(transformers.generation.streamers.BaseStreamer):
    """Hands out each step's tokens. The first thing generate puts is the prompt."""

    def __init__(self, waiting: Sequence[tuple[int, Sequence[int], int]], emit: Emit) -> None:
        self._waiting, self._emit = waiting, emit
        self._num_steps = -1

    def put(self, value: torch.Tensor) -> None:
        self._num_steps += 1
        if self._num_steps == 0:
            return
        for (request, _, max_tokens), token in zip(self._waiting, value.tolist(), strict=True):
            if self._num_steps <= max_tokens:
                self._emit(request, [token])

    def end(self) -> None:
        pass


class Transformers:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        torch.set_num_threads(threads)
        self.version = transformers.__version__
        self.precision = f"{variant} weights and arithmetic"
        path = Path(model)
        place = {"gguf_file": path.name} if path.is_file() else {}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent if path.is_file() else path), dtype=DTYPES[variant], **place
        ).eval()
        self._waiting: list[tuple[int, Sequence[int], int]] = []

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        self._waiting.append((request, prompt, max_tokens))

    @torch.inference_mode()
    def step(self, emit: Emit, timeout_s: float | None) -> None:
        waiting, self._waiting = self._waiting, []
        longest = max(len(prompt) for _, prompt, _ in waiting)
        ids = torch.zeros(len(waiting), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (_, prompt, _) in enumerate(waiting):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        length = max(max_tokens for _, _, max_tokens in waiting)
        config = transformers.GenerationConfig(
            max_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=None
        )
        streamer = Streamer(waiting, emit)
        self._model.generate(ids, attention_mask=mask, generation_config=config, streamer=streamer)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> numpy.ndarray:
        return self._model(torch.tensor([list(token_ids)])).logits[0].float().numpy()


if __name__ == "__main__":
    serve(Transformers)
