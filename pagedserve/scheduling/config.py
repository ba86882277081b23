# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is told at its start, and what it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pagedserve.errors import InvalidInput


@dataclass(slots=True)
class SchedulerStats:
    """A snapshot. pages_used + pages_cached + pages_free = pages_total; what follows those counts from the start."""

    waiting: int = 0  # those blocked by `after` included
    running: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0  # held by the prefix cache alone
    pages_free: int = 0
    host_pages_used: int = 0
    prefix_queries: int = 0  # requests that started
    prefix_query_tokens: int = 0  # their prompts
    prefix_hit_tokens: int = 0  # what of those was found computed
    preemptions: int = 0
    swaps: int = 0  # preemptions to host pages
    recomputed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and prices. Checked when made; InvalidInput names the field."""

    num_pages: int  # of the pool on the device
    page_size: int  # tokens per page
    max_seqs: int  # rows, that is sequences that run at once
    max_step_tokens: int  # computed in one step; at least max_seqs, so that every row can decode
    max_model_len: int  # prompt and output tokens of one request
    watermark: float = 0.01  # share of the pool left free when a prompt starts beside others, for those that grow
    prefix_cache: bool = True  # keep pages of computed tokens for whoever comes with the same prefix
    num_host_pages: int = 0  # in host memory, for preempted sequences to be swapped to
    max_queue: int | None = None  # requests that may wait to start; None for any number
    priority_s: float = 10.0  # a level of priority goes ahead of this many seconds of waiting
    # The context at which attending costs a token as much as all else. For an 8B model with 32 layers and hidden size
    # 4096: 16e9 flop over 4 * 32 * 4096 flop per token of context.
    attention_parity_tokens: int = 30_000
    swap_page_tokens: float = 4.0  # the price of moving a page to or from the host, in prompt tokens computed
    graph_buckets: tuple[int, ...] = ()  # numbers of decodes for which the runner captured graphs, rising

    def __post_init__(self) -> None:
        least = dict.fromkeys(("num_pages", "page_size", "max_seqs", "max_model_len", "attention_parity_tokens"), 1)
        least |= {"max_step_tokens": self.max_seqs, "num_host_pages": 0, "max_queue": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not (type(value) is int and value >= minimum) and not (name == "max_queue" and value is None):
                why = " (max_seqs)" if name == "max_step_tokens" else ""
                raise InvalidInput(f"{name} must be an int of at least {minimum}{why}; got {value!r}")
        for name in ("priority_s", "swap_page_tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be a finite number, at least 0; got {value}")
        if not 0.0 <= self.watermark < 1.0:
            raise InvalidInput(f"watermark is a share of the pool, 0 <= watermark < 1; got {self.watermark}")
        if any(bucket < 1 for bucket in self.graph_buckets) or list(self.graph_buckets) != sorted(self.graph_buckets):
            raise InvalidInput(f"graph_buckets are batch sizes in rising order; got {self.graph_buckets}")
