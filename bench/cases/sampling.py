# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token over the demo model's vocabulary. torch: argmax, or a sort and a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases.case import BenchCase, Inputs

SETTINGS: dict[str, dict[str, float]] = {
    "greedy": {},
    "plain": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_k-top_p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}
DTYPES = {"top_k": torch.int32, "seeds": torch.int64, "offsets": torch.int64}
OFF = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition": 1.0,
    "presence": 0.0,
    "frequency": 0.0,
    "seeds": 0,
    "offsets": 0,
}


def sample(grid: str) -> list[BenchCase]:
    rows, vocab_size = ((1, 64), 49152) if grid == "default" else ((2,), 50)

    def case(num_rows: int, setting: str) -> BenchCase:
        given = OFF | SETTINGS[setting]

        def make() -> Inputs:
            per_row = {
                name: torch.full((num_rows,), value, dtype=DTYPES.get(name, torch.float32))
                for name, value in given.items()
            }
            empty = torch.zeros(num_rows + 1, dtype=torch.int32)
            history = {"history": empty[:0], "history_starts": empty, "output_starts": empty[1:]}
            return {"logits": torch.randn(num_rows, vocab_size) * 3, **per_row, **history}

        def by_torch(inputs: Inputs) -> tuple[Tensor, Tensor]:
            logits = inputs["logits"]
            logprobs = torch.log_softmax(logits, dim=-1)
            chosen = logits.argmax(-1, keepdim=True) if setting == "greedy" else _draw(logits, given)
            return chosen, logprobs.gather(1, chosen)

        way = "log_softmax and argmax" if setting == "greedy" else "log_softmax, sort, cumsum, multinomial"
        return BenchCase("sample", f"{num_rows}x{vocab_size}-{setting}", make, by_torch, way)

    return [case(num_rows, setting) for setting in SETTINGS for num_rows in rows]


def _draw(logits: Tensor, given: dict[str, float]) -> Tensor:
    scaled, ids = torch.sort(logits / given["temperature"], dim=-1, descending=True)
    if given["top_k"]:
        scaled[:, int(given["top_k"]) :] = -torch.inf
    probabilities = torch.softmax(scaled, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= given["top_p"]] = 0
    return ids.gather(1, torch.multinomial(probabilities, 1))
