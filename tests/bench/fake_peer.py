# SPDX-License-Identifier: Apache-2.0
"""An engine without a model, in a process of its own: each step gives every running request one token."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy

from bench.peers.protocol import serve
from bench.workload import Emit


class Fake:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        if model == "missing":
            raise FileNotFoundError("no such model")
        print("a library talks on stdout")
        self.version, self.precision = "1.0", f"{variant}, {threads} threads"
        self._model = model
        self._left: dict[int, int] = {}

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        if self._model == "dies":
            print("out of memory, for example", file=sys.stderr, flush=True)
            os._exit(3)
        self._left[request] = max_tokens

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        for request in list(self._left):
            emit(request, [self._left[request]])
            self._left[request] -= 1
            if not self._left[request]:
                del self._left[request]

    def logits(self, token_ids: Sequence[int]) -> numpy.ndarray | None:
        if self._model == "hidden":
            return None
        return numpy.eye(4, dtype=numpy.float32)[list(token_ids)]


if __name__ == "__main__":
    serve(Fake)
