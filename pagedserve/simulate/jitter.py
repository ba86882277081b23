# SPDX-License-Identifier: Apache-2.0
"""Steps of one shape do not all take the same: another thread's turn, a slower second of the machine.

A queue feels that: waits grow with the scatter of steps, and their tail most. So a measured cost is simulated with the
scatter that was measured with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import itemgetter

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.cost import StepLaw

ALIKE = 64  # steps that one is drawn from: the nearest in cost, within half and twice of it, and all of the same cost
_WORD = (1 << 64) - 1


class Jittered:
    """A step cost times the ratio of measured to expected of one measured step, among those of about the same cost.

    Which one follows from the step's shape and the seed alone: no state, so the same workload takes the same time
    whatever was simulated before it. Over many shapes the mean is that of the measured steps.

    Args:
        cost: what a step is expected to take.
        steps: shape and ms of measured steps; at least one.
        seed: another one draws otherwise.
    """

    def __init__(self, cost: StepLaw, steps: Iterable[tuple[StepShape, float]], *, seed: int = 0) -> None:
        pairs = [(expected, ms / expected) for shape, ms in steps if (expected := cost.ms(shape)) > 0]
        known = sorted(pairs, key=itemgetter(0))
        if not known:
            raise InvalidInput("a step cost's scatter is that of measured steps; give at least one")
        self._cost, self._seed = cost, seed
        self._expected = [expected for expected, _ in known]
        self._ratios = [ratio for _, ratio in known]

    def ms(self, shape: StepShape) -> float:
        """Of a step, O(log(measured steps))."""
        expected, known = self._cost.ms(shape), self._expected
        low, high = bisect_left(known, expected), bisect_right(known, expected)
        middle = (low + high) // 2
        least, most = bisect_left(known, expected / 2), bisect_right(known, 2 * expected)
        first, end = max(min(low, middle - ALIKE // 2), least), min(max(high, middle + ALIKE // 2), most)
        if first >= end:  # nothing like it was measured
            return expected * self._ratios[min(low, len(known) - 1)]
        return expected * self._ratios[first + _mixed(self._seed, shape) % (end - first)]


def _mixed(seed: int, shape: StepShape) -> int:
    """As good as random, and the same everywhere."""
    word = seed
    for value in shape:
        word = ((word ^ value) * 0x9E3779B97F4A7C15) & _WORD
        word ^= word >> 29
    word = (word * 0xBF58476D1CE4E5B9) & _WORD
    return word ^ (word >> 32)
