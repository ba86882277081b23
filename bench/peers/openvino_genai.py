# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI's continuous batching pipeline. It reads the demo model's GGUF file itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import openvino
import openvino_genai

from bench.peers.protocol import serve
from bench.workload import Emit


class OpenVino:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        self.version = openvino_genai.__version__
        self.precision = f"the file's weights, {variant} arithmetic"
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": variant}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, openvino_genai.SchedulerConfig(), "CPU", properties
        )
        self._running: dict[int, Any] = {}

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        tokens = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        self._running[request] = self._pipeline.add_request(request, tokens, config)

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        self._pipeline.step()
        for request, handle in list(self._running.items()):
            while handle.can_read():
                for output in handle.read().values():
                    emit(request, output.generated_ids)
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del self._running[request]

    def logits(self, token_ids: Sequence[int]) -> None:
        return None


if __name__ == "__main__":
    serve(OpenVino)
