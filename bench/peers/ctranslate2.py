# SPDX-License-Identifier: Apache-2.0
"""CTranslate2's generator. Those who wait with prompts of one length go into one batch; it runs to its end.

One length, because the generator counts a longer prompt's rest among its steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import ctranslate2
from ctranslate2.converters import TransformersConverter

from bench.peers.dequantised import folder_of
from bench.peers.protocol import serve
from bench.workload import Emit

TYPES = {"int8": "int8", "f32": "float32"}


class CTranslate2:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        self.version = ctranslate2.__version__
        self.precision = f"{variant} weights and products"
        source = folder_of(model)
        target = source.parent / f"{source.name}-ctranslate2-{variant}"
        if not target.exists():
            TransformersConverter(str(source)).convert(str(target), quantization=TYPES[variant])
        self._generator = ctranslate2.Generator(
            str(target), device="cpu", compute_type=TYPES[variant], intra_threads=threads, inter_threads=1
        )
        self._words: list[str] = json.loads((target / "vocabulary.json").read_text())
        self._waiting: list[tuple[int, Sequence[int], int]] = []

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        self._waiting.append((request, prompt, max_tokens))

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        length = len(self._waiting[0][1])
        waiting = [entry for entry in self._waiting if len(entry[1]) == length]
        self._waiting = [entry for entry in self._waiting if len(entry[1]) != length]

        def on_token(result: ctranslate2.GenerationStepResult) -> bool:
            request, _, max_tokens = waiting[result.batch_id]
            if result.step < max_tokens:
                emit(request, [result.token_id])
            return False

        most = max(max_tokens for _, _, max_tokens in waiting)
        self._generator.generate_batch(
            [[self._words[token] for token in prompt] for _, prompt, _ in waiting],
            max_length=most,
            min_length=most,
            end_token=[],
            include_prompt_in_result=False,
            callback=on_token,
        )

    def logits(self, token_ids: Sequence[int]) -> None:
        return None


if __name__ == "__main__":
    serve(CTranslate2)
