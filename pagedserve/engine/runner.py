# SPDX-License-Identifier: Apache-2.0
"""A StepPlan becomes the step's input arrays, the step's logits become tokens.

Decodes are laid out by whole-array operations on persistent arrays; Python loops over what changed (page
writes, prompt chunks, rows that came or moved), not over what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pagedserve import ops
from pagedserve.engine.requests import CompletionState, StepTokens
from pagedserve.engine.rows import Rows, SampleBatch
from pagedserve.ops.step import Step
from pagedserve.scheduling.events import StepPlan


class Pages(Protocol):
    """What the runner needs of cache.KVPool."""

    page_size: int

    def swap_out(self, pairs: Sequence[tuple[int, int]]) -> None: ...

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None: ...

    def swap_in(self, pairs: Sequence[tuple[int, int]]) -> None: ...


@dataclass(slots=True)
class _Layout:
    """Where the tokens of a step stand. Steps of the same decodes and no prompts share one.

    Attributes:
        reusable_for: the decodes' rows whose next steps look the same; None where the step had prompts.
        decode_places: [num_decodes], of their tokens in the step.
        sampling: [num_rows], rows of the batch that sample, in the plan's order.
    """

    reusable_for: np.ndarray | None
    decode_places: np.ndarray
    sampling: np.ndarray
    num_tokens: int
    num_seqs: int


class ModelRunner:
    """Computes steps of one model on one pool. One thread at a time.

    Args:
        step: the model's recorded forward.
        pool: the pages it attends to.
        max_len: tokens of a sequence at most.
        backend: of ops.sample.
    """

    def __init__(self, step: Step, pool: Pages, *, max_len: int, backend: str = "auto") -> None:
        self._step = step
        self._pool = pool
        self._page_size = pool.page_size
        self._backend = backend
        inputs = step.inputs
        self._token_ids = inputs.token_ids.numpy()
        self._positions = inputs.positions.numpy()
        self._slots = inputs.slot_mapping.numpy()
        self._q_starts = inputs.q_starts.numpy()
        self._kv_lens = inputs.kv_lens.numpy()
        self._page_table = inputs.page_table.numpy()
        self._logit_rows = inputs.logit_rows.numpy()
        max_seqs = len(self._kv_lens)
        self._rows = Rows(max_seqs, max_len)
        self._counts = np.zeros(max_seqs, np.int32)
        self._decodes: tuple[object, object, np.ndarray] = (None, None, np.zeros(0, np.int64))
        self._batch: SampleBatch | None = None  # of the last step that sampled
        # By number of rows and num_top: the logits' address, and what samples from them.
        self._samplers: dict[tuple[int, int], tuple[int, Callable[[], ops.Sampled]]] = {}
        self._layout = _Layout(None, self._decodes[2], self._decodes[2], 0, 0)

    def add(self, completion: CompletionState) -> None:
        """Take on a sequence before its first step."""
        self._rows.add(completion)

    def forget(self, id: str) -> None:
        """Let go of a sequence that takes part in no further step."""
        self._rows.forget(id)

    def prepare(self, plan: StepPlan) -> None:
        """Move rows and pages as the plan says. If this raises, the pages are no longer what the scheduler thinks."""
        self._place(plan)
        if plan.swap_out:
            self._pool.swap_out(plan.swap_out)
        if plan.copies:
            self._pool.copy(plan.copies)
        if plan.swap_in:
            self._pool.swap_in(plan.swap_in)
        for row, index, page in plan.page_writes:
            self._page_table[row, index] = page

    def run(self, plan: StepPlan) -> StepTokens:
        """Compute the step that was prepared.

        Returns:
            the sampled tokens, in the order of StepDone.

        Raises:
            whatever the model or the sampler raises; then nothing counts as computed, and the same tokens may
            be planned again.
        """
        layout = self._lay_out(plan)
        logits = self._step.run(layout.num_tokens, layout.num_seqs, len(layout.sampling))
        if not len(layout.sampling):
            return StepTokens([])
        return self._sample(plan, logits, layout.sampling)

    def _place(self, plan: StepPlan) -> None:
        """Put everybody in the row the plan gives."""
        rows, ids, _ = self._decodes
        if rows is not plan.decode_rows or ids is not plan.decode_ids:
            decode_rows = np.fromiter(plan.decode_rows, np.int64, len(plan.decode_rows))
            self._decodes = (plan.decode_rows, plan.decode_ids, decode_rows)
            for id, row in zip(plan.decode_ids, plan.decode_rows, strict=True):
                self._rows.place(id, row)
        for chunk in plan.chunks:
            self._rows.place(chunk.id, chunk.row)

    def _lay_out(self, plan: StepPlan) -> _Layout:
        """Fill the step's inputs."""
        decode_rows = self._decodes[2]
        layout = self._layout
        if plan.chunks or layout.reusable_for is not decode_rows:
            layout = self._layout = self._share_out(plan, decode_rows)
        last = self._rows.lengths[decode_rows] - 1
        places = layout.decode_places
        self._token_ids[places] = self._rows.tokens[decode_rows, last]
        self._positions[places] = last
        page, offset = np.divmod(last, self._page_size)
        self._slots[places] = self._page_table[decode_rows, page].astype(np.int64) * self._page_size + offset
        self._kv_lens[decode_rows] = last + 1
        for chunk in plan.chunks:
            begin, end = self._q_starts[chunk.row], self._q_starts[chunk.row + 1]
            positions = np.arange(chunk.start, chunk.start + chunk.num_tokens)
            self._token_ids[begin:end] = self._rows.tokens[chunk.row, positions[0] : positions[-1] + 1]
            self._positions[begin:end] = positions
            pages = self._page_table[chunk.row, positions // self._page_size].astype(np.int64)
            self._slots[begin:end] = pages * self._page_size + positions % self._page_size
            self._kv_lens[chunk.row] = positions[-1] + 1
        return layout

    def _share_out(self, plan: StepPlan, decode_rows: np.ndarray) -> _Layout:
        """Who takes part, and where their tokens stand: q_starts, logit_rows, and no keys for everybody else."""
        counts = self._counts
        counts[:] = 0
        counts[decode_rows] = 1
        for chunk in plan.chunks:
            counts[chunk.row] = chunk.num_tokens
        np.cumsum(counts, out=self._q_starts[1:])
        self._kv_lens[:] = 0
        chunk_rows = np.array([chunk.row for chunk in plan.chunks if chunk.samples], np.int64)
        sampling = np.concatenate((decode_rows, chunk_rows)) if len(chunk_rows) else decode_rows
        self._logit_rows[: len(sampling)] = self._q_starts[sampling + 1] - 1
        num_seqs = int(np.flatnonzero(counts)[-1]) + 1
        return _Layout(
            reusable_for=None if plan.chunks else decode_rows,
            decode_places=self._q_starts[decode_rows],
            sampling=sampling,
            num_tokens=int(self._q_starts[num_seqs]),
            num_seqs=num_seqs,
        )

    def _sample(self, plan: StepPlan, logits: torch.Tensor, sampling: np.ndarray) -> StepTokens:
        rows, batch = self._rows, self._batch
        if batch is None or batch.rows is not sampling:
            batch = self._batch = rows.batch(sampling)
        if batch.masked:
            rows.mask_stops(batch, logits)
        np.take(rows.lengths, sampling, out=batch.offsets.numpy())
        sampled = self._sampler(batch, logits)()
        tokens = sampled.tokens.numpy()
        step = StepTokens(tokens.tolist())
        if min(step.tokens) < 0:
            ids = [*plan.decode_ids, *(chunk.id for chunk in plan.chunks if chunk.samples)]
            step.failed = tuple(id for id, token in zip(ids, step.tokens, strict=True) if token < 0)
            rows.append(sampling[tokens >= 0], tokens[tokens >= 0])
        else:
            rows.append(sampling, tokens)
        if batch.num_top >= 0:
            step.logprobs = sampled.logprobs.numpy().copy()  # the next step writes there while these are read
        if batch.num_top > 0:
            step.top_tokens, step.top_logprobs = sampled.top_tokens.numpy().copy(), sampled.top_logprobs.numpy().copy()
        return step

    def _sampler(self, batch: SampleBatch, logits: torch.Tensor) -> Callable[[], ops.Sampled]:
        """ops.sample for a batch; checked once for as many rows, whose parameters were checked at the door."""
        num_top = max(batch.num_top, 0)
        place, address = (len(batch.rows), num_top), logits.data_ptr()
        held = self._samplers.get(place)
        if held is not None and held[0] == address and not batch.penalised:
            return held[1]
        history, history_starts, output_starts = self._rows.history(batch)
        sampler = ops.sampler(
            logits,
            **batch.parameters,
            offsets=batch.offsets,
            history=history,
            history_starts=history_starts,
            output_starts=output_starts,
            num_top=num_top,
            backend=self._backend,
        )
        if not batch.penalised:
            self._samplers[place] = address, sampler
        return sampler
