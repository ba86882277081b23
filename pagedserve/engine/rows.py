# SPDX-License-Identifier: Apache-2.0
"""What the runner knows of the sequence in each row of the batch, in arrays that a step reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pagedserve.engine.requests import CompletionState

# Column of Rows -> (dtype, attribute of SamplingParams). Names are those of ops.sample.
COLUMNS = {
    "temperature": (np.float32, "temperature"),
    "top_k": (np.int32, "top_k"),
    "top_p": (np.float32, "top_p"),
    "min_p": (np.float32, "min_p"),
    "repetition": (np.float32, "repetition_penalty"),
    "presence": (np.float32, "presence_penalty"),
    "frequency": (np.float32, "frequency_penalty"),
}


class _Sequence:
    """A sequence between its first step and its end. Without a row, tokens holds what is known."""

    __slots__ = ("completion", "row", "tokens")

    def __init__(self, completion: CompletionState) -> None:
        self.completion = completion
        self.row = -1
        self.tokens = np.asarray(completion.request.prompt_token_ids, dtype=np.int32)


@dataclass(slots=True)
class SampleBatch:
    """The rows that sample in a step, and their parameters as ops.sample takes them. The next one has the same memory.

    Attributes:
        rows: [num_rows] int64.
        parameters: ops.sample's arguments that do not change from step to step.
        penalised, masked: places in rows whose history counts, and where stop tokens may be masked.
        num_top: log probabilities of so many tokens are wanted; -1: of none.
        offsets: [num_rows] int64, the positions of the tokens to be chosen.
        no_history: ops.sample's history, history_starts and output_starts where nobody is penalised.
    """

    rows: np.ndarray
    parameters: dict[str, torch.Tensor]
    penalised: list[int]
    masked: list[int]
    num_top: int
    offsets: torch.Tensor
    no_history: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Rows:
    """Persistent arrays, one place a row.

    Args:
        max_seqs: rows.
        max_len: tokens of a sequence, prompt and output; memory is only touched as far as sequences reach.
    """

    def __init__(self, max_seqs: int, max_len: int) -> None:
        self.tokens = np.zeros((max_seqs, max_len), np.int32)
        self.lengths = np.zeros(max_seqs, np.int64)  # known tokens
        self._columns = {name: np.zeros(max_seqs, dtype) for name, (dtype, _) in COLUMNS.items()}
        self._columns["seeds"] = np.zeros(max_seqs, np.int64)
        # What Rows.batch gathers into: always the same memory, so that a sampler prepared for so many rows stays good.
        self._gathered = {name: torch.from_numpy(column.copy()) for name, column in self._columns.items()}
        self._offsets = torch.zeros(max_seqs, dtype=torch.int64)
        self._nothing = torch.zeros(max_seqs + 1, dtype=torch.int32)
        self._owners: list[_Sequence | None] = [None] * max_seqs
        self._sequences: dict[str, _Sequence] = {}

    def add(self, completion: CompletionState) -> None:
        """Know this sequence; it has no row yet."""
        self._sequences[completion.id] = _Sequence(completion)

    def forget(self, id: str) -> None:
        """The sequence is over; its row is free."""
        sequence = self._sequences.pop(id)
        if sequence.row >= 0:
            self._owners[sequence.row] = None

    def place(self, id: str, row: int) -> None:
        """The sequence is in this row from now on. Who was there, or where it was, is kept as long as it lives."""
        sequence = self._sequences[id]
        if sequence.row == row:
            return
        for moved in (self._owners[row], sequence):
            if moved is not None and moved.row >= 0:
                moved.tokens = self.tokens[moved.row, : self.lengths[moved.row]].copy()
                self._owners[moved.row] = None
                moved.row = -1
        self._owners[row] = sequence
        sequence.row = row
        self.lengths[row] = len(sequence.tokens)
        self.tokens[row, : len(sequence.tokens)] = sequence.tokens
        sequence.tokens = sequence.tokens[:0]
        params = sequence.completion.request.params
        for name, (_, attribute) in COLUMNS.items():
            self._columns[name][row] = getattr(params, attribute)
        self._columns["seeds"][row] = np.uint64(sequence.completion.seed).astype(np.int64)

    def batch(self, rows: np.ndarray) -> SampleBatch:
        """Gather what sampling these rows takes; the batch before it is void."""
        wanted = [self._owners[row].completion.request.params for row in rows.tolist()]
        num_top = max((-1 if params.logprobs is None else params.logprobs for params in wanted), default=-1)
        count, nothing = len(rows), self._nothing[: len(rows) + 1]
        parameters = {name: gathered[:count] for name, gathered in self._gathered.items()}
        for name, column in self._columns.items():
            np.take(column, rows, out=parameters[name].numpy())
        return SampleBatch(
            rows,
            parameters,
            [i for i, params in enumerate(wanted) if params.penalises],
            [i for i, params in enumerate(wanted) if params.min_tokens > 0],
            num_top,
            self._offsets[:count],
            (nothing[:0], nothing, nothing[1:]),
        )

    def history(self, batch: SampleBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ops.sample's history, history_starts, output_starts: the tokens of penalised rows, nothing of the others."""
        if not batch.penalised:
            return batch.no_history
        counts = np.zeros(len(batch.rows), np.int32)
        prompts = np.zeros(len(batch.rows), np.int32)
        parts = []
        for i in batch.penalised:
            row = batch.rows[i]
            parts.append(self.tokens[row, : self.lengths[row]])
            counts[i] = len(parts[-1])
            prompts[i] = len(self._owners[row].completion.request.prompt_token_ids)
        starts = np.zeros(len(batch.rows) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        return (
            torch.from_numpy(np.concatenate(parts)),
            torch.from_numpy(starts),
            torch.from_numpy(starts[:-1] + prompts),
        )

    def mask_stops(self, batch: SampleBatch, logits: torch.Tensor) -> None:
        """No stop token where min_tokens are not out yet: its logit in [num_rows, vocab_size] becomes -inf."""
        for i in batch.masked:
            row = batch.rows[i]
            request = self._owners[row].completion.request
            if self.lengths[row] - len(request.prompt_token_ids) < request.params.min_tokens:
                logits[i, sorted(request.stop_token_ids)] = -torch.inf

    def append(self, rows: np.ndarray, tokens: Sequence[int] | np.ndarray) -> None:
        """One more known token for each of these rows."""
        lengths = self.lengths[rows]
        self.tokens[rows, lengths] = tokens
        self.lengths[rows] = lengths + 1
