# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through llama-cpp-python's C interface: one batch a step, decodes first, then as much prompt as fits.

Variant q4_0 is the file quantised anew to Q4_0, which llama.cpp repacks for its fastest kernels; other 4-bit formats it
runs as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy

from bench.peers import FOLDER
from bench.peers.protocol import serve
from bench.workload import Emit

MAX_SEQS = 64
CONTEXT = 65536  # tokens of all sequences together: 64 users of 1,024, or 32 of 2,048
BATCH = 512


def requantised(model: str) -> Path:
    """The file in Q4_0, under .peers/models. Made once, in some seconds, then kept."""
    path = Path(model)
    target = FOLDER / "models" / f"{path.stem}.Q4_0.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
        part = target.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(path).encode(), str(part).encode(), params):
            raise RuntimeError(f"llama.cpp cannot quantise {model} to Q4_0")
        part.rename(target)
    return target


class Running:
    def __init__(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        self.request, self.pending, self.left = request, list(prompt), max_tokens
        self.position = 0
        self.slot = -1


class LlamaCpp:
    def __init__(self, model: str, threads: int, variant: str) -> None:
        self.version = llama_cpp.__version__
        self.precision = "the file's weights, as shipped"
        llama_cpp.llama_backend_init()
        if variant == "q4_0":
            self.precision = "Q4_0 from the file's weights"
            model = str(requantised(model))
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, BATCH, BATCH
        options.n_seq_max = MAX_SEQS
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._slots = list(range(MAX_SEQS))
        self._waiting: list[Running] = []
        self._running: list[Running] = []

    def add(self, request: int, prompt: Sequence[int], max_tokens: int) -> None:
        self._waiting.append(Running(request, prompt, max_tokens))

    def step(self, emit: Emit, timeout_s: float | None) -> None:
        while self._waiting and self._slots:
            sequence = self._waiting.pop(0)
            sequence.slot = self._slots.pop()
            self._running.append(sequence)
        rows: list[tuple[int, Running]] = []  # (place in the batch, whose next token it gives)
        self._batch.n_tokens = 0
        for sequence in sorted(self._running, key=lambda s: len(s.pending)):  # decodes have one token pending
            room = BATCH - self._batch.n_tokens
            share, sequence.pending = sequence.pending[:room], sequence.pending[room:]
            for token in share:
                self._put(token, sequence.position, sequence.slot)
                sequence.position += 1
            if share and not sequence.pending:
                self._batch.logits[self._batch.n_tokens - 1] = 1
                rows.append((self._batch.n_tokens - 1, sequence))
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama_decode failed")
        for place, sequence in rows:
            token = int(self._row(place).argmax())
            sequence.pending = [token]
            sequence.left -= 1
            emit(sequence.request, [token])
            if not sequence.left:
                self._release(sequence)

    def _put(self, token: int, position: int, slot: int) -> None:
        batch, place = self._batch, self._batch.n_tokens
        batch.token[place] = token
        batch.pos[place] = position
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = slot
        batch.logits[place] = 0
        batch.n_tokens += 1

    def _row(self, place: int) -> numpy.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self._context, place)
        return numpy.ctypeslib.as_array(pointer, shape=(self._vocab_size,))

    def _release(self, sequence: Running) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        self._slots.append(sequence.slot)
        self._running.remove(sequence)

    def logits(self, token_ids: Sequence[int]) -> numpy.ndarray:
        if len(token_ids) > BATCH:
            raise ValueError(f"{len(token_ids)} tokens; the batch holds {BATCH}")
        self._batch.n_tokens = 0
        for position, token in enumerate(token_ids):
            self._put(token, position, 0)
            self._batch.logits[position] = 1
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama_decode failed")
        rows = numpy.stack([self._row(place).copy() for place in range(len(token_ids))])
        llama_cpp.llama_memory_seq_rm(self._memory, 0, -1, -1)
        return rows


if __name__ == "__main__":
    serve(LlamaCpp)
