# SPDX-License-Identifier: Apache-2.0
"""A model whose keys are the tokens themselves: its logits are a hash of everything it can see through the pages.

One wrong slot, page, position or length, one page copied too late or shared too early, and the answer is another.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from pagedserve.ops import StepInputs, StepLimits

NOTHING = -1


class SymbolicPool:
    """[num_pages, page_size] token ids instead of keys and values."""

    def __init__(self, num_pages: int, page_size: int, num_host_pages: int = 0) -> None:
        self.page_size = page_size
        self.slots = np.full((num_pages, page_size), NOTHING)
        self.host = np.full((num_host_pages, page_size), NOTHING)

    def copy(self, pairs) -> None:
        for source, destination in pairs:
            self.slots[destination] = self.slots[source]

    def swap_out(self, pairs) -> None:
        for page, host_page in pairs:
            self.host[host_page] = self.slots[page]  # the page may be others' too, and stays as it is

    def swap_in(self, pairs) -> None:
        for host_page, page in pairs:
            self.slots[page] = self.host[host_page]
            self.host[host_page] = NOTHING


def hash_logits(tokens: list[int], vocab_size: int) -> np.ndarray:
    """[vocab_size] float32, from all the tokens in their order."""
    generator = np.random.default_rng(zlib.crc32(np.asarray(tokens, np.int64).tobytes()))
    return generator.normal(size=vocab_size).astype(np.float32)


class SymbolicStep:
    """A Step that reads and writes a SymbolicPool."""

    def __init__(self, pool: SymbolicPool, limits: StepLimits, vocab_size: int) -> None:
        self.inputs = StepInputs(limits)
        self._pool = pool
        self._logits = torch.empty(limits.max_rows, vocab_size)

    def run(self, num_tokens: int, num_seqs: int, num_rows: int) -> torch.Tensor:
        inputs, slots, page_size = self.inputs, self._pool.slots, self._pool.page_size
        for token in range(num_tokens):
            slot = int(inputs.slot_mapping[token])
            slots[slot // page_size, slot % page_size] = int(inputs.token_ids[token])
        seen_by: dict[int, list[int]] = {}
        assert int(inputs.q_starts[num_seqs]) == num_tokens
        for row in range(num_seqs):
            begin, end, kv_len = int(inputs.q_starts[row]), int(inputs.q_starts[row + 1]), int(inputs.kv_lens[row])
            if begin == end:
                continue
            pages = inputs.page_table[row, : -(-kv_len // page_size)].tolist()
            keys = slots[pages].reshape(-1)[:kv_len].tolist()
            assert NOTHING not in keys
            for token in range(begin, end):
                position = kv_len - end + token
                assert int(inputs.positions[token]) == position
                seen_by[token] = keys[: position + 1]
        for i, token in enumerate(inputs.logit_rows[:num_rows].tolist()):
            self._logits[i] = torch.from_numpy(hash_logits(seen_by[token], self._logits.shape[1]))
        return self._logits[:num_rows]
