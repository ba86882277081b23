# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is told at its start, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pagedserve.errors import require
from pagedserve.scheduling.cost import StepPrices


def is_count(value: object, least: int, most: int = 1 << 60) -> bool:
    """An int in these bounds."""
    return type(value) is int and least <= value <= most


def is_above(value: object) -> bool:
    """A finite number above 0."""
    return isinstance(value, (int, float)) and 0 < value < math.inf


@dataclass(slots=True)
class SchedulerStats:
    """A snapshot. pages_used + pages_cached + pages_free = pages_total; what follows those counts from the start."""

    waiting: int = 0  # those blocked included
    blocked: int = 0  # by `after`
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
    rejected: int = 0
    expired: int = 0
    promises_kept: int = 0  # deadlines of admitted requests that were met
    promises_broken: int = 0  # and that were not
    places_claimed: int = 0  # by who was sent away and came back in time
    places_kept: int = 0  # and was admitted
    ttft_error: float = 0.0  # of first tokens predicted at arrival, relative, recent ones
    step_error: float = 0.0  # of steps' predicted times, likewise
    drain_s: float = 0.0  # until everybody who waits now has a first token, predicted


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
    tpot_target_s: float | None = None  # a step beside decodes is to stay within, as within every request's own
    admission: bool = True  # refuse who cannot be served before its deadline
    tenants: Mapping[str, float] = field(default_factory=dict)  # name -> weight; empty: any tenant, all of weight 1
    prices: StepPrices = field(default_factory=StepPrices)  # of a step's time, to begin with

    def __post_init__(self) -> None:
        names = isinstance(self.tenants, Mapping) and all(isinstance(name, str) for name in self.tenants)
        counts = ("num_pages", "page_size", "max_seqs", "max_model_len", "attention_parity_tokens")
        rules = [(name, is_count(getattr(self, name), 1), "an int of at least 1") for name in counts]
        most = f"an int of at least {self.max_seqs} (max_seqs)"
        rising = list(self.graph_buckets) == sorted(self.graph_buckets) and min(self.graph_buckets, default=1) >= 1
        rules += [
            ("max_step_tokens", rules[2][1] and is_count(self.max_step_tokens, self.max_seqs), most),
            ("num_host_pages", is_count(self.num_host_pages, 0), "an int of at least 0"),
            ("max_queue", self.max_queue is None or is_count(self.max_queue, 0), "an int of at least 0, or None"),
            ("watermark", 0.0 <= self.watermark < 1.0, "a share of the pool, 0 <= watermark < 1"),
            ("priority_s", 0 <= self.priority_s < math.inf, "a finite number, at least 0"),
            ("swap_page_tokens", 0 <= self.swap_page_tokens < math.inf, "a finite number, at least 0"),
            ("graph_buckets", rising, "batch sizes in rising order"),
            ("tpot_target_s", self.tpot_target_s is None or is_above(self.tpot_target_s), "seconds above 0, or None"),
            ("tenants", names and all(map(is_above, self.tenants.values())), "names with finite weights above 0"),
        ]
        require(self, rules)
