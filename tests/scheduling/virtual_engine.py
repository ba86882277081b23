# SPDX-License-Identifier: Apache-2.0
"""A scheduler in virtual time: arrivals at their times, steps that cost what a law says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import Abort, Admit, Arrive, Decision, Event, Expire, Finish, Reject, StepDone
from pagedserve.scheduling.scheduler import Scheduler


@dataclass
class Story:
    """What became of a request. Times in seconds since its arrival."""

    arrival: Arrive
    admitted: bool = False
    end: str = ""
    first_s: float = math.inf
    end_s: float = math.inf
    retry_after_s: float | None = None
    tokens: int = 0

    @property
    def on_time(self) -> bool:
        return self.first_s <= (self.arrival.ttft_deadline_s or math.inf) and self.end in ("length", "stop")


@dataclass
class VirtualEngine:
    """Runs until everybody has left. step_s: (tokens, seconds) of each step."""

    scheduler: Scheduler
    law: StepPrices
    stories: dict[str, Story] = field(default_factory=dict)
    steps: list[tuple[int, int, float]] = field(default_factory=list)

    def run(self, arrivals: Iterable[Arrive]) -> dict[str, Story]:
        coming = sorted(arrivals, key=lambda event: event.t)
        place, t = 0, 0.0
        while True:
            while place < len(coming) and coming[place].t <= t:
                event = coming[place]
                self.stories.setdefault(event.id, Story(event))
                self._apply(event)
                place += 1
            plan = self.scheduler.plan(t)
            if plan is not None:
                ms = self.law.ms(plan.shape)
                self.steps.append((len(plan.decode_ids), plan.num_tokens, ms))
                t += ms / 1e3
                sampled = [*plan.decode_ids, *(chunk.id for chunk in plan.chunks if chunk.samples)]
                for id in sampled:
                    story = self.stories[id]
                    story.tokens += 1
                    story.first_s = min(story.first_s, t - story.arrival.t)
                self._apply(StepDone(t, plan.step, [0] * len(sampled), ms=ms))
            elif self.scheduler.num_waiting + self.scheduler.num_running:
                t += 0.02
                self._apply(Abort(t, ""))
            elif place < len(coming):
                t = coming[place].t
            else:
                return self.stories

    def _apply(self, event: Event) -> list[Decision]:
        made = self.scheduler.apply(event)
        for decision in made:
            story = self.stories[decision.id]
            if isinstance(decision, Admit):
                story.admitted = True
            elif isinstance(decision, Reject):
                story.end, story.retry_after_s = "rejected", decision.retry_after_s
            elif isinstance(decision, (Expire, Finish)):
                story.end = "expired" if isinstance(decision, Expire) else decision.reason
                story.end_s = event.t - story.arrival.t
        return made
