# SPDX-License-Identifier: Apache-2.0
"""How many replicas there should be: policies as pure functions of a load, in tokens of work and seconds to drain.

Requests differ a thousandfold in work, so counting requests says little; tokens do, and a replica's rate in tokens a
second, measured while it was busy, turns them into the seconds that somebody who comes now would wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pagedserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy sees.

    Attributes:
        t: seconds.
        ready, starting: replicas that serve, and that were started and do not yet.
        backlog_tokens: of work that is here and not done.
        arriving_tokens_per_s, trend_tokens_per_s2: work that comes, and how fast that grows.
        replica_tokens_per_s: what one replica does while it is busy.
        start_s: from asking for a replica to its first request, as measured.
    """

    t: float
    ready: int
    starting: int
    backlog_tokens: float
    arriving_tokens_per_s: float
    trend_tokens_per_s2: float
    replica_tokens_per_s: float
    start_s: float

    @property
    def seconds_to_drain(self) -> float:
        """How long the backlog lasts if nobody comes any more; infinite where nobody serves."""
        rate = self.ready * self.replica_tokens_per_s
        return self.backlog_tokens / rate if rate > 0 else math.inf if self.backlog_tokens else 0.0


Policy = Callable[[Load], int]


def backlog_tokens(tokens_per_replica: float) -> Policy:
    """As many replicas as the backlog has shares of so many tokens."""
    _positive("tokens_per_replica", tokens_per_replica)
    return lambda load: math.ceil(load.backlog_tokens / tokens_per_replica)


def seconds_to_drain(target_s: float) -> Policy:
    """Enough to keep up with what comes, and to work the backlog off within target_s besides."""
    _positive("target_s", target_s)

    def policy(load: Load) -> int:
        needed = load.arriving_tokens_per_s + load.backlog_tokens / target_s
        return math.ceil(needed / load.replica_tokens_per_s)

    return policy


def predictive(target_s: float, headroom: float = 1.15) -> Policy:
    """As seconds_to_drain, for the moment at which a replica that is asked for now would be ready.

    Until then the rate goes on climbing as it climbs now (a falling one is not counted on), and what exceeds the
    replicas that are ready is added to the backlog.

    Args:
        headroom: capacity over what comes, so that chance does not build a queue.
    """
    _positive("target_s", target_s)
    _positive("headroom", headroom)

    def policy(load: Load) -> int:
        climb = max(0.0, load.trend_tokens_per_s2)
        then = load.arriving_tokens_per_s + climb * load.start_s
        mean = load.arriving_tokens_per_s + climb * load.start_s / 2
        # Those that start already come, on average, half way.
        serving = (load.ready + load.starting / 2) * load.replica_tokens_per_s
        # What they cannot keep up with piles up; a backlog that they will have worked off by then calls for nobody.
        backlog = max(0.0, load.backlog_tokens + (mean - serving) * load.start_s)
        return math.ceil((then * headroom + backlog / target_s) / load.replica_tokens_per_s)

    return policy


class Autoscaler:
    """A policy held to bounds, that goes up at once and down only after it has wanted to for a while.

    Args:
        policy: of this module, or any function of a Load.
        least, most: replicas.
        down_after_s: for so long it must have wanted fewer; it then goes to the most it wanted in that time.

    Raises:
        InvalidInput: an argument cannot be.
    """

    def __init__(self, policy: Policy, *, least: int = 1, most: int = 1000, down_after_s: float = 120.0) -> None:
        if not 1 <= least <= most:
            raise InvalidInput(f"least is {least} and most {most}; give 1 <= least <= most")
        if not down_after_s >= 0:
            raise InvalidInput(f"down_after_s is {down_after_s}; give seconds of at least 0")
        self._policy = policy
        self._least, self._most, self._down_after_s = least, most, down_after_s
        self._began_s: float | None = None
        self._wanted: list[tuple[float, int]] = []  # of the last down_after_s, those that no later one reached

    def desired(self, load: Load) -> int:
        """Replicas that should be ready or starting from now on. Times rise from call to call."""
        there = load.ready + load.starting
        wanted = min(max(self._policy(load), self._least), self._most)
        since = load.t - self._down_after_s
        self._wanted = [(t, n) for t, n in self._wanted if t > since and n > wanted] + [(load.t, wanted)]
        self._began_s = load.t if self._began_s is None else self._began_s
        floor = there if since < self._began_s else min(there, self._wanted[0][1])
        return max(wanted, floor)


class Trend:
    """A rate and its climb, of counts that come at any time (Holt's double exponential smoothing).

    Args:
        window_s: of the rate, what happened so long ago counts a third; of the climb, which is a difference of noisy
            numbers, three times as long ago.
    """

    def __init__(self, window_s: float) -> None:
        _positive("window_s", window_s)
        self._window_s = window_s
        self._last_s: float | None = None
        self._begun = False
        self.rate = 0.0
        self.climb = 0.0

    def observe(self, t: float, count: float) -> None:
        """So much has come since the last call; the first call only sets the clock."""
        step_s = 0.0 if self._last_s is None else t - self._last_s
        if self._last_s is None:
            self._last_s = t
        if step_s <= 0:
            return
        self._last_s = t
        if not self._begun:  # a rate out of nowhere is no climb
            self.rate, self._begun = count / step_s, True
            return
        keep, keep_climb = math.exp(-step_s / self._window_s), math.exp(-step_s / (3 * self._window_s))
        before, expected = self.rate, self.rate + self.climb * step_s
        self.rate = max(0.0, keep * expected + (1 - keep) * count / step_s)
        self.climb = keep_climb * self.climb + (1 - keep_climb) * (self.rate - before) / step_s


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InvalidInput(f"{name} is {value}; give a number above 0")
