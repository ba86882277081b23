# SPDX-License-Identifier: Apache-2.0
"""Steps of a scheduler whose every sequence decodes, and the work of one counted in bytecodes and calls."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive, StepDone, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

PAGE_SIZE, OUTPUT_TOKENS = 16, 1000


def decoding(num_seqs: int, prompt_tokens: int, *, staggered: bool = True) -> tuple[Scheduler, StepPlan]:
    """num_seqs sequences that decode, and their next step; staggered: as many fill a page in each step.

    Every request has a TTFT deadline, a TPOT target and a total deadline.
    """
    longest = prompt_tokens + PAGE_SIZE + OUTPUT_TOKENS
    pages = num_seqs * (longest // PAGE_SIZE + 1)
    config = SchedulerConfig(pages, PAGE_SIZE, max_seqs=num_seqs, max_step_tokens=8192, max_model_len=longest)
    scheduler = Scheduler(config)
    for i in range(num_seqs):
        own_tokens = prompt_tokens + (i % PAGE_SIZE if staggered else 0)
        prompt = [(i * 7919 + j) % 30_000 for j in range(own_tokens)]
        promises = {"ttft_deadline_s": 1e6, "tpot_target_s": 1.0, "deadline_s": 1e6}
        stops = frozenset([30_001])
        scheduler.apply(Arrive(0.0, f"r{i}", prompt, OUTPUT_TOKENS, stops, tenant=f"t{i % 8}", **promises))
    plan = scheduler.plan(0.0)
    while plan is not None and plan.chunks:
        samples = len(plan.decode_rows) + sum(chunk.samples for chunk in plan.chunks)
        scheduler.apply(StepDone(0.0, plan.step, [5] * samples, ms=10.0))
        plan = scheduler.plan(0.0)
    if plan is None or len(plan.decode_rows) != num_seqs:
        raise RuntimeError("not every sequence came to decode")
    return scheduler, plan


def one_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> StepPlan:
    """Its result in, the next plan out."""
    t = plan.step * 0.01
    scheduler.apply(StepDone(t, plan.step, tokens, ms=10.0))
    following = scheduler.plan(t)
    if following is None:
        raise RuntimeError("nothing decodes any more")
    return following


def count_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int]) -> tuple[StepPlan, int, int]:
    """The next plan, the bytecodes run to get there, and the Python functions called."""
    counted = [0, 0]

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted[event == "call"] += event in ("opcode", "call")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        following = one_step(scheduler, plan, tokens)
    finally:
        sys.settrace(before)
    return following, counted[0], counted[1]
