# SPDX-License-Identifier: Apache-2.0
"""A scheduler that says what it is told and what it decides, as it happens: for logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import Decision, Event, StepPlan
from pagedserve.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Planned:
    """A step was planned here. Not an event: what a log holds beside them, so that replay plans at the same places."""

    t: float
    step: int
    num_tokens: int
    predicted_ms: float = 0.0


Record = Event | Planned
OnEvent = Callable[[Record, list[Decision]], object]


class WatchedScheduler(Scheduler):
    """Calls on_event after each event with its decisions, and after each plan with a Planned. It never leaps."""

    def __init__(self, config: SchedulerConfig, on_event: OnEvent) -> None:
        super().__init__(config)
        self._on_event = on_event

    def apply(self, event: Event) -> list[Decision]:
        decisions = super().apply(event)
        self._on_event(event, decisions)
        return decisions

    def plan(self, t: float) -> StepPlan | None:
        plan = super().plan(t)
        if plan is not None:
            self._on_event(Planned(t, plan.step, plan.shape.num_tokens, plan.predicted_ms), [])
        return plan

    def horizon(self) -> tuple[int, float]:
        return 0, math.inf


def watched(config: SchedulerConfig, on_event: OnEvent | None) -> Scheduler:
    """A scheduler; watched where there is somebody to tell."""
    return Scheduler(config) if on_event is None else WatchedScheduler(config, on_event)
