# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is told once, at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pagedserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and prices. Checked when made; InvalidInput names the field.

    Attributes:
        num_pages, page_size: the pool on the device, and tokens per page.
        max_seqs: rows, that is sequences that run at once.
        max_step_tokens: tokens computed in one step, decodes included; at least max_seqs, so that every row can decode.
        max_model_len: prompt and output tokens of one request.
        watermark: share of the pool kept free when a prompt is admitted beside others, for those that grow.
        prefix_cache: keep pages of computed tokens for whoever comes with the same prefix.
        num_host_pages: pages in host memory that preempted sequences can be swapped to.
        max_queue: requests that may wait to start; None for any number.
        priority_s: a level of priority goes ahead of this many seconds of waiting.
        attention_parity_tokens: the context at which attending costs a token as much as all else. For an 8B model with
            32 layers and hidden size 4096: 16e9 flop over 4 * 32 * 4096 flop per token of context, 30,000.
        swap_page_tokens: the price of moving a page to or from the host, in prompt tokens computed.
        graph_buckets: numbers of decodes for which the runner captured graphs, rising.
    """

    num_pages: int
    page_size: int
    max_seqs: int
    max_step_tokens: int
    max_model_len: int
    watermark: float = 0.01
    prefix_cache: bool = True
    num_host_pages: int = 0
    max_queue: int | None = None
    priority_s: float = 10.0
    attention_parity_tokens: int = 30_000
    swap_page_tokens: float = 4.0
    graph_buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_pages", "page_size", "max_seqs", "max_model_len", "attention_parity_tokens"):
            self._check_int(name, at_least=1)
        self._check_int("max_step_tokens", at_least=self.max_seqs)
        self._check_int("num_host_pages", at_least=0)
        if self.max_queue is not None:
            self._check_int("max_queue", at_least=0)
        if not 0.0 <= self.watermark < 1.0:
            raise InvalidInput(f"watermark is a share of the pool, 0 <= watermark < 1; got {self.watermark}")
        for name in ("priority_s", "swap_page_tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be a finite number, at least 0; got {value}")
        if any(bucket < 1 for bucket in self.graph_buckets) or list(self.graph_buckets) != sorted(self.graph_buckets):
            raise InvalidInput(f"graph_buckets are batch sizes in rising order; got {self.graph_buckets}")

    def _check_int(self, name: str, at_least: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < at_least:
            why = " (max_seqs)" if name == "max_step_tokens" else ""
            raise InvalidInput(f"{name} must be an int of at least {at_least}{why}; got {value!r}")
