# SPDX-License-Identifier: Apache-2.0
"""One engine in virtual time: the scheduler itself, and a cost in place of a model.

It does what the engine's loop does, in its order: the step's result, then who arrived meanwhile, then the next plan.
Where steps only decode and nothing can come between, as far as is known, many are taken at once; whoever comes earlier
cuts them short at the end of the step that is under way. What is seen and decided is what single steps would give.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from pagedserve.eventlog.watched import OnEvent, watched
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.scheduling.events import Abort, Arrive, Decision, Expire, Finish, Reject, StepDone, StepPlan
from pagedserve.simulate.cost import SETTLED, StepLaw
from pagedserve.simulate.pace import Paced, steps_ms
from pagedserve.simulate.workload import Request

WORD, STOP = 0, 1  # every token sampled, and the one that ends a request before its max_tokens
STARVED_WAIT_S = 0.02  # as the engine's: with requests but nothing to compute, deadlines are looked at this often


@dataclass(slots=True, eq=False)
class Visit:
    """A request at a replica. attempt: 0, or how often it was sent away before; replica: that it is at, or was."""

    number: int
    request: Request
    attempt: int
    arrival_s: float
    replica: Replica | None = None
    first_s: float | None = None

    @property
    def id(self) -> str:
        return str(self.number)


Ended = Callable[[Visit, Decision, float], None]


class Replica:
    """Args:
    ended: called with a visit, the decision that ended it and the time.
    promises: tell the scheduler what each request was promised; without, it is asked for nothing but service.
    """

    def __init__(
        self,
        number: int,
        config: SchedulerConfig,
        cost: StepLaw,
        ended: Ended,
        *,
        promises: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        self.number = number
        self.scheduler = watched(config, on_event)
        self.backlog_tokens = 0  # prompts not yet computed, and all that may yet be generated, of those here
        self.steps = 0
        self.busy = False
        self.end_s = math.inf  # when what it does now will be over
        self._cost = cost.elsewhere(number) if isinstance(cost, Paced) else cost
        self._ended = ended
        self._promises = promises
        self._inbox: list[Visit] = []
        self._open: dict[str, Visit] = {}
        self._plan: StepPlan | None = None
        self._steps_ms: list[float] = []  # of the step in flight and those that follow at once
        self._ends_s: list[float] = []
        self._tick = 0
        self._behind = SETTLED
        self._stops: dict[int, list[str]] = {}  # tick -> ids that may say STOP then

    @property
    def num_open(self) -> int:
        """Requests here, those at its door included."""
        return len(self._open) + len(self._inbox)

    @property
    def num_waiting(self) -> int:
        """Requests here that nothing is computed for."""
        return len(self._inbox) + self.scheduler.num_waiting

    def submit(self, visit: Visit, t: float) -> None:
        """A request comes; the scheduler hears of it before its next plan, for which end_s may come forward."""
        visit.replica = self
        self._inbox.append(visit)
        self.backlog_tokens += len(visit.request.prompt) + visit.request.asked_tokens
        if self._plan is not None:
            del self._ends_s[bisect_left(self._ends_s, t) + 1 :]
            self.end_s = self._ends_s[-1]

    def begin(self, t: float) -> None:
        """Hear who came and begin a step, or several; end_s says when they will be over; inf: nothing is to be done."""
        for visit in self._inbox:
            self._arrive(visit, t)
        self._inbox.clear()
        plan = self._plan = self.scheduler.plan(t)
        self.busy = plan is not None or bool(self._open)
        if plan is None:
            self.end_s = t + STARVED_WAIT_S if self._open else math.inf
            return
        self._steps_ms, self._ends_s = self._look_ahead(plan.shape, t)
        self.end_s = self._ends_s[-1]

    def end(self, t: float) -> None:
        """The steps are over, or it is time to look at deadlines."""
        plan, self._plan = self._plan, None
        if plan is None:
            self._decide(self.scheduler.apply(Abort(t, "")), t)  # of nobody: only time goes on
            return
        ms, leapt = self._steps_ms, len(self._ends_s) - 1
        if leapt:
            self.scheduler.leap(self._ends_s[:-1], lambda step: round(ms[step], 3), WORD)
        self.steps += leapt + 1
        self._tick += leapt + 1
        self._behind = self._behind.after(plan.shape, leapt + 1)
        tokens = self._sample(plan, t)
        self._decide(self.scheduler.apply(StepDone(t, plan.step, tokens, ms=round(ms[leapt], 3))), t)

    def _look_ahead(self, shape: StepShape, t: float) -> tuple[list[float], list[float]]:
        """What the step in flight and those that follow it for sure take, in ms, and when each ends."""
        most, until_s = self.scheduler.horizon()
        if self._stops:
            most = min(most, min(self._stops) - self._tick - 1)
        all_ms = steps_ms(self._cost, shape, max(most, 0) + 1, t, self._behind)
        ends_s = list(accumulate([ms / 1e3 for ms in all_ms], initial=t))[1:]
        del ends_s[bisect_left(ends_s, until_s) + 1 :]
        return all_ms, ends_s

    def _arrive(self, visit: Visit, t: float) -> None:
        request, id = visit.request, visit.id
        slo = request.slo
        self._open[id] = visit
        arrival = Arrive(
            visit.arrival_s,
            id,
            request.prompt,
            request.asked_tokens,
            stop_token_ids=_STOPS if request.output_tokens < request.asked_tokens else _NO_STOPS,
            tenant=request.tenant,
            priority=request.priority,
            ttft_deadline_s=slo.ttft_s if self._promises else None,
            tpot_target_s=slo.tpot_s if self._promises else None,
            deadline_s=slo.total_s if self._promises else None,
        )
        self._decide(self.scheduler.apply(arrival), t)

    def _sample(self, plan: StepPlan, t: float) -> list[int]:
        """The plan's tokens; STOP where a request has said all it will say."""
        tokens = [WORD] * len(plan.decode_ids)
        for id in self._stops.pop(self._tick, ()):
            if id in self._open and id in plan.decode_ids and self._left(id) == 1:
                tokens[plan.decode_ids.index(id)] = STOP
        for chunk in plan.chunks:
            if chunk.samples:
                visit = self._open[chunk.id]
                if visit.first_s is None:
                    visit.first_s = t
                    self.backlog_tokens -= len(visit.request.prompt)
                tokens.append(self._after_prompt(visit, chunk.id))
        return tokens

    def _after_prompt(self, visit: Visit, id: str) -> int:
        """The token that a prompt's last chunk samples; also notes when the request will stop of itself."""
        if visit.request.output_tokens >= visit.request.asked_tokens:
            return WORD
        left = self._left(id)
        if left == 1:
            return STOP
        # Whoever is preempted on the way comes here again; its old note is then of no one who has 1 left.
        self._stops.setdefault(self._tick + left - 1, []).append(id)
        return WORD

    def _left(self, id: str) -> int:
        """Tokens that a request has yet to generate."""
        seq = self.scheduler.sequence(id)
        return self._open[id].request.output_tokens - (len(seq.tokens) - seq.num_prompt)

    def _decide(self, decisions: list[Decision], t: float) -> None:
        for decision in decisions:
            if isinstance(decision, (Finish, Reject, Expire)):
                visit = self._open.pop(decision.id)
                prompt_tokens = len(visit.request.prompt) if visit.first_s is None else 0
                self.backlog_tokens -= prompt_tokens + visit.request.asked_tokens
                self._ended(visit, decision, t)


_STOPS, _NO_STOPS = frozenset({STOP}), frozenset[int]()
