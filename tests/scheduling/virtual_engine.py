# SPDX-License-Identifier: Apache-2.0
"""A scheduler in virtual time: arrivals at their times, steps that cost what a law says."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

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
    hold_s: float | None = None
    told_s: float = 0.0  # when it was admitted or sent away
    tokens: int = 0
    before: Story | None = None  # when it came last, and was sent away

    @property
    def on_time(self) -> bool:
        """Its first token by its deadline, the others at its target on average."""
        others_s = (self.end_s - self.first_s) / max(1, self.tokens - 1)
        is_served = self.end in ("length", "stop") and self.first_s <= (self.arrival.ttft_deadline_s or math.inf)
        return is_served and others_s <= (self.arrival.tpot_target_s or math.inf)


@dataclass
class VirtualEngine:
    """Runs until everybody has left. steps: (decodes, tokens, ms) of each.

    returns: of who was sent away, the time at which it comes again, or None.
    pace: what the law's time of the next step is multiplied by.
    """

    scheduler: Scheduler
    law: StepPrices
    returns: Callable[[Story], float | None] = lambda story: None
    pace: Callable[[], float] = lambda: 1.0
    stories: dict[str, Story] = field(default_factory=dict)
    steps: list[tuple[int, int, float]] = field(default_factory=list)

    def run(self, arrivals: Iterable[Arrive]) -> dict[str, Story]:
        coming, t = sorted(arrivals, key=lambda event: event.t, reverse=True), 0.0
        while True:
            while coming and coming[-1].t <= t:
                event = coming.pop()
                self.stories[event.id] = story = Story(event, before=self.stories.get(event.id))
                self._apply(event)
                story.told_s = t
                if story.end == "rejected" and (again_s := self.returns(story)) is not None:
                    insort(coming, replace(event, t=again_s), key=lambda event: -event.t)
            plan = self.scheduler.plan(t)
            if plan is not None:
                ms = self.law.ms(plan.shape) * self.pace()
                self.steps.append((len(plan.decode_ids), plan.shape.num_tokens, ms))
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
            elif coming:
                t = coming[-1].t
            else:
                return self.stories

    def _apply(self, event: Event) -> list[Decision]:
        made = self.scheduler.apply(event)
        for decision in made:
            story = self.stories[decision.id]
            if isinstance(decision, Admit):
                story.admitted = True
            elif isinstance(decision, Reject):
                story.end, story.retry_after_s, story.hold_s = "rejected", decision.retry_after_s, decision.hold_s
            elif isinstance(decision, (Expire, Finish)):
                story.end = "expired" if isinstance(decision, Expire) else decision.reason
                story.end_s = event.t - story.arrival.t
        return made
