# SPDX-License-Identifier: Apache-2.0
"""Steps of a scheduler whose every sequence decodes, and the work of one counted in bytecodes and calls."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Arrive, StepDone, StepPlan
from pagedserve.scheduling.scheduler import Scheduler

PAGE_SIZE, OUTPUT_TOKENS, STEP_MS = 16, 1000, 10.0


def decoding(
    num_seqs: int, prompt_tokens: int, *, staggered: bool = True, promised: bool = True
) -> tuple[Scheduler, StepPlan]:
    """num_seqs sequences that decode, and their next step.

    Args:
        staggered: as many fill a page in each step.
        promised: every request has a tenant, a TTFT deadline, a TPOT target and a total deadline, and steps are timed.
    """
    longest = prompt_tokens + PAGE_SIZE + OUTPUT_TOKENS
    pages = num_seqs * (longest // PAGE_SIZE + 1)
    config = SchedulerConfig(pages, PAGE_SIZE, max_seqs=num_seqs, max_step_tokens=8192, max_model_len=longest)
    scheduler = Scheduler(config)
    for i in range(num_seqs):
        own_tokens = prompt_tokens + (i % PAGE_SIZE if staggered else 0)
        prompt = [(i * 7919 + j) % 30_000 for j in range(own_tokens)]
        arrival = Arrive(0.0, f"r{i}", prompt, OUTPUT_TOKENS, frozenset([30_001]))
        if promised:
            arrival = replace(arrival, tenant=f"t{i % 8}", ttft_deadline_s=1e6, tpot_target_s=1.0, deadline_s=1e6)
        scheduler.apply(arrival)
    plan = scheduler.plan(0.0)
    while plan is not None and plan.chunks:
        samples = len(plan.decode_rows) + sum(chunk.samples for chunk in plan.chunks)
        scheduler.apply(StepDone(0.0, plan.step, [5] * samples, ms=STEP_MS * promised))
        plan = scheduler.plan(0.0)
    if plan is None or len(plan.decode_rows) != num_seqs:
        raise RuntimeError("not every sequence came to decode")
    return scheduler, plan


def one_step(scheduler: Scheduler, plan: StepPlan, tokens: list[int], ms: float = STEP_MS) -> StepPlan:
    """Its result in, the next plan out. ms: how long it took; 0: nobody knows, and nothing is learnt from it."""
    t = plan.step * STEP_MS / 1e3
    scheduler.apply(StepDone(t, plan.step, tokens, ms=ms))
    following = scheduler.plan(t)
    if following is None:
        raise RuntimeError("nothing decodes any more")
    return following


def count_step(
    scheduler: Scheduler, plan: StepPlan, tokens: list[int], ms: float = STEP_MS
) -> tuple[StepPlan, int, int]:
    """The next plan, the bytecodes run to get there, and the Python functions called."""
    counted = [0, 0]

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted[event == "call"] += event in ("opcode", "call")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        following = one_step(scheduler, plan, tokens, ms)
    finally:
        sys.settrace(before)
    return following, counted[0], counted[1]
