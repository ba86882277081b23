# SPDX-License-Identifier: Apache-2.0
"""Steps of one shape do not all take the same: another program's turn, a slower second of the machine.

A queue feels that: waits grow with the scatter of steps, and more so where slow steps come together, as they do. So a
measured cost is simulated on a machine that is now slower and now faster, as it was while the cost was measured: its
pace (ms that steps took, over ms that they were expected to) is played back against the simulated clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from copy import copy
from itertools import accumulate

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.cost import SETTLED, Behind, StepCurve, StepLaw, step_ms, steps_in_a_row

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, lie far apart however many there are


class Paced:
    """A step cost at the paces of measured steps, in their order, again and again.

    What a step takes follows from its shape, from what it stands behind and from when it begins: no state, so steps may
    be looked up in any order. Over long times the mean is that of the measured steps.

    Args:
        cost: what a step is expected to take.
        steps: shape and ms of measured steps, in the order in which they ran; at least one. Where the shape is None,
            nothing was computed for so long, and the pace is the mean one.
        begin_s: where among their seconds the simulated time 0 is.
    """

    def __init__(self, cost: StepLaw, steps: Iterable[tuple[StepShape | None, float]], *, begin_s: float = 0.0) -> None:
        steps = [(shape, ms) for shape, ms in steps if ms > 0]
        expected_ms = steps_in_a_row(cost, (shape for shape, _ in steps if shape is not None))
        taken = [(None if shape is None else next(expected_ms), ms) for shape, ms in steps]
        computed = [(expected, ms) for expected, ms in taken if expected]
        if not computed:
            raise InvalidInput("a machine's pace is that of measured steps; give at least one")
        mean = sum(ms for _, ms in computed) / sum(expected for expected, _ in computed)
        pairs = [(ms / mean if expected is None else expected, ms) for expected, ms in taken if expected != 0]
        self._cost, self._begin_s = cost, begin_s
        self._paces = [ms / expected for expected, ms in pairs]
        # Where each measured step begins, in expected ms and in measured ms; and the ends.
        self._work = list(accumulate((expected for expected, _ in pairs), initial=0.0))
        self._wall = list(accumulate((ms for _, ms in pairs), initial=0.0))

    def ms(self, shape: StepShape) -> float:
        """Of a step, on average; O(1)."""
        return self._cost.ms(shape) * self._wall[-1] / self._work[-1]

    def ms_at(self, shape: StepShape, t: float, behind: Behind = SETTLED) -> float:
        """Of a step that begins at t, in seconds, and stands there; O(log(measured steps))."""
        period = self._wall[-1]
        begin = 1e3 * (self._begin_s + t) % period
        place = self._place(self._wall, begin)
        work = self._work[place] + (begin - self._wall[place]) / self._paces[place]
        rounds, goal = divmod(work + step_ms(self._cost, shape, behind), self._work[-1])
        place = self._place(self._work, goal)
        end = self._wall[place] + (goal - self._work[place]) * self._paces[place]
        return max(0.0, rounds * period + end - begin)

    def elsewhere(self, number: int) -> Paced:
        """The same on another machine of its kind, at another of its moments."""
        other = copy(self)
        other._begin_s = self._begin_s + number * _GOLDEN * self._wall[-1] / 1e3
        return other

    def _place(self, begins: list[float], at: float) -> int:
        """The measured step that at falls into."""
        return min(bisect_right(begins, at) - 1, len(self._paces) - 1)


def steps_ms(law: StepLaw, shape: StepShape, count: int, t: float, behind: Behind = SETTLED) -> list[float]:
    """What so many steps take, one at once after the other from t on: the first of this shape, and then decodes."""
    if isinstance(law, StepCurve):
        return law.decode_ms(shape, count, behind) if count > 1 else [step_ms(law, shape, behind)]
    if not isinstance(law, Paced):
        return [law.ms(shape.later(steps)) for steps in range(count)]
    made = []
    for steps in range(count):
        ms = law.ms_at(shape.later(steps), t, behind)
        made.append(ms)
        t += ms / 1e3
        behind = behind.after(shape)
    return made
