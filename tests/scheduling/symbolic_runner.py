# SPDX-License-Identifier: Apache-2.0
"""A runner that computes no numbers: each slot of each page holds the name of what was written there.

The name of a token's keys and values is (salt, all tokens up to it). Whoever attends checks that every slot it reads
holds the name it should, so sharing, copy on write, swaps, row reuse and recomputation are proven right or caught.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scheduler_audit import audit

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import (
    Arrive,
    Decision,
    Expire,
    Finish,
    Preempt,
    Reject,
    StepDone,
    StepFailed,
    StepPlan,
)
from pagedserve.scheduling.scheduler import Scheduler

CONFIG = SchedulerConfig(
    num_pages=64, page_size=4, max_seqs=8, max_step_tokens=32, max_model_len=128, watermark=0.0, graph_buckets=(1, 4)
)

POISON = -1  # what a failed computation leaves behind
UNWRITTEN = -2

Sampler = Callable[[list[int]], int]


def sum_sampler(vocab_size: int) -> Sampler:
    """The next token as a function of all before, so that equal prefixes go on equally."""
    return lambda tokens: (31 * sum(tokens) + 7 * len(tokens) + tokens[-1]) % vocab_size


class SymbolicRunner:
    """Device pages, host pages and the page table, by name."""

    def __init__(self, scheduler: Scheduler, sample: Sampler) -> None:
        self.scheduler = scheduler
        self.page_size = scheduler.config.page_size
        self.sample = sample
        self.poisonous: set[str] = set()  # ids whose every computation is nonsense
        self._names: dict[tuple[object, int], int] = {}
        self._device: dict[int, list[int]] = {}
        self._host: dict[int, list[int]] = {}
        self._table: dict[tuple[int, int], int] = {}
        self._rows_seen: tuple[object, list[int]] = (None, [])

    def compute(self, plan: StepPlan, broken: bool = False) -> tuple[list[int], list[str]]:
        """Make the plan's moves and compute it: the sampled tokens, and the ids whose tokens are nonsense."""
        self._check_decode_rows(plan)
        self._move(plan)
        tokens: list[int] = []
        failed: list[str] = []
        for row, id in zip(plan.decode_rows, plan.decode_ids, strict=True):
            length = len(self.scheduler.sequence(id).tokens)
            self._forward(id, row, length - 1, 1, True, broken, tokens, failed)
        for chunk in plan.chunks:
            self._forward(chunk.id, chunk.row, chunk.start, chunk.num_tokens, chunk.samples, broken, tokens, failed)
        return tokens, failed

    def lose_pages_from(self, num_pages: int) -> None:
        """The pool shrank: what was beyond is gone."""
        self._device = {page: slots for page, slots in self._device.items() if page < num_pages}

    def _check_decode_rows(self, plan: StepPlan) -> None:
        """The list is the same object only while its content is."""
        before, content = self._rows_seen
        assert plan.decode_rows is not before or list(plan.decode_rows) == content
        self._rows_seen = (plan.decode_rows, list(plan.decode_rows))

    def _move(self, plan: StepPlan) -> None:
        sources = {source for source, _ in plan.copies}
        targets = [target for _, target in plan.copies] + [page for _, page in plan.swap_in]
        assert len(set(targets)) == len(targets), "two moves to one page"
        assert not sources & set(targets), "a page is the source and the target of copies"
        assert len({host for _, host in plan.swap_out}) == len(plan.swap_out)
        assert len({write[:2] for write in plan.page_writes}) == len(plan.page_writes), "two writes to one entry"
        for page, host in plan.swap_out:
            self._host[host] = list(self._slots(page))
        for source, target in plan.copies:
            self._device[target] = list(self._slots(source))
        for host, page in plan.swap_in:
            self._device[page] = list(self._host[host])
        for row, i, page in plan.page_writes:
            self._table[row, i] = page

    def _slots(self, page: int) -> list[int]:
        return self._device.setdefault(page, [UNWRITTEN] * self.page_size)

    def _forward(
        self,
        id: str,
        row: int,
        start: int,
        num_tokens: int,
        samples: bool,
        broken: bool,
        tokens: list[int],
        failed: list[str],
    ) -> None:
        seq = self.scheduler.sequence(id)
        assert seq.row == row
        stop = start + num_tokens
        assert samples == (stop == len(seq.tokens))
        parent, nonsense = self._names.setdefault((seq.arrival.cache_salt, -1), len(self._names)), False
        for position, token in enumerate(seq.tokens[:stop]):
            name = self._names.setdefault((parent, token), len(self._names))
            page = self._table[row, position // self.page_size]
            assert page < self.scheduler.stats().pages_total, f"{id} uses page {page}, which the pool has not"
            slots = self._slots(page)
            if position >= start:
                slots[position % self.page_size] = POISON if broken or id in self.poisonous else name
            held = slots[position % self.page_size]
            nonsense |= held == POISON
            assert held in (name, POISON), f"{id} reads another prefix at {position} of {len(seq.tokens)}"
            parent = name
        assert broken or not nonsense or self.poisonous, f"{id} reads what a failed step wrote"
        if samples:
            tokens.append(self.sample(seq.tokens))
            if nonsense:
                failed.append(id)


def step(runner: SymbolicRunner, t: float = 0.0) -> list[Decision] | None:
    """Plan, compute, apply; None where there was nothing to do."""
    plan = runner.scheduler.plan(t)
    if plan is None:
        return None
    tokens, failed = runner.compute(plan)
    return runner.scheduler.apply(StepDone(t, plan.step, tokens, failed))


def fail_step(runner: SymbolicRunner, plan: StepPlan, t: float = 0.0, message: str = "") -> list[Decision]:
    """Compute the plan wrongly, and say so."""
    runner.compute(plan, broken=True)
    return runner.scheduler.apply(StepFailed(t, plan.step, message))


def run_dry(runner: SymbolicRunner, t: float = 0.0, limit: int = 10_000) -> list[Decision]:
    """Steps until nobody is left."""
    decisions: list[Decision] = []
    for _ in range(limit):
        made = step(runner, t)
        if made is None:
            assert num_open(runner.scheduler) == 0, "requests are left, but there is nothing to do"
            return decisions
        decisions += made
        audit(runner.scheduler)
    raise AssertionError(f"{num_open(runner.scheduler)} requests are left after {limit} steps")


def num_open(scheduler: Scheduler) -> int:
    """Requests waiting or running."""
    return scheduler.num_waiting + scheduler.num_running


def endings(decisions: Iterable[Decision]) -> dict[str, str]:
    """id -> how it ended; each at most once."""
    ended: dict[str, str] = {}
    for decision in decisions:
        if isinstance(decision, (Finish, Expire, Reject)):
            assert decision.id not in ended, f"{decision.id} was answered twice"
            ended[decision.id] = "expired" if isinstance(decision, Expire) else decision.reason
    return ended


def preempted(decisions: Iterable[Decision]) -> list[str]:
    """Who was preempted, in order."""
    return [decision.id for decision in decisions if isinstance(decision, Preempt)]


def make(sampled: int = 7, **changes: Any) -> tuple[Scheduler, SymbolicRunner]:
    """A scheduler, and a runner that samples the same token always."""
    scheduler = Scheduler(dataclasses.replace(CONFIG, **changes))
    return scheduler, SymbolicRunner(scheduler, lambda tokens: sampled)


def arrive(scheduler: Scheduler, id: str, prompt: Sequence[int], max_tokens: int = 4, **fields: Any) -> Decision:
    [decision] = scheduler.apply(Arrive(fields.pop("t", 0.0), id, prompt, max_tokens, **fields))
    return decision


def distinct(count: int, first: int = 100) -> list[int]:
    return list(range(first, first + count))
