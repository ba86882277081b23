# SPDX-License-Identifier: Apache-2.0
"""What a step costs: ms = max(weights, token * tokens) + context * contexts + pair * pairs + seq * seqs + step.

The prices are learnt from measured steps by an extended Kalman filter on their logarithms. The derivative of log ms by
the logarithm of a price is its term's share of the step, so an error goes where the time went and least is known.
log r is taken as 2 (r - 1) / (r + 1), and exp as its inverse: with + - * / alone every machine learns the same bits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from operator import mul
from typing import NamedTuple

from pagedserve.errors import InvalidInput

NOISE = 0.01  # variance of a step's relative error: 10 %
DRIFT = 1e-4  # variance that a price gains per step
RECENT = 1 / 32  # weight of the latest step in what is said of the error


class StepShape(NamedTuple):
    """What a step's time depends on."""

    num_tokens: int
    num_seqs: int
    context: int  # keys that decodes attend to
    pairs: int  # of a prompt's token and a token that it attends to

    def plus(self, start: int, num_tokens: int) -> StepShape:
        """With one more sequence, whose tokens [start, start + num_tokens) are computed."""
        pairs = self.pairs + num_tokens * start + num_tokens * (num_tokens + 1) // 2
        return StepShape(self.num_tokens + num_tokens, self.num_seqs + 1, self.context, pairs)

    def later(self, num_steps: int) -> StepShape:
        """Of a step that only decodes, so many steps later."""
        return StepShape(self.num_tokens, self.num_seqs, self.context + num_steps * self.num_seqs, self.pairs)


NO_STEP = StepShape(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class StepPrices:
    """Prices in ms; a guess for a machine that nothing is known of. Checked when made."""

    weights_ms: float = 8.0
    token_ms: float = 0.5
    context_ms: float = 2e-4
    pair_ms: float = 2e-4
    seq_ms: float = 0.05
    step_ms: float = 0.5
    uncertainty: float = 1.0  # of each, relative: 1 where guessed, 0.05 where measured; 0 is never corrected

    def __post_init__(self) -> None:
        for field, value in zip(fields(self), astuple(self), strict=True):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise InvalidInput(f"prices.{field.name} must be a finite number, at least 0; got {value!r}")

    def ms(self, shape: StepShape) -> float:
        """Of a step, at these prices."""
        return sum(_terms(astuple(self), shape))


class CostModel:
    """Prices that follow what is measured.

    Attributes: num_measured steps; error, their mean relative error when predicted, recent ones first; bias, the same
    with its sign (positive: steps took longer than predicted); latest, that of the last step alone.
    """

    def __init__(self, prices: StepPrices) -> None:
        *self._prices, uncertainty = astuple(prices)
        self._cap, self._surprises = uncertainty * uncertainty, 0
        self._doubt()
        self.num_measured, self.error, self.bias, self.latest = 0, 0.0, 0.0, 0.0

    @property
    def prices(self) -> StepPrices:
        """As learnt so far."""
        return replace(StepPrices(*self._prices), uncertainty=min(1.0, max(0.05, self.error)))

    @property
    def is_known(self) -> bool:
        """Enough to make promises by."""
        return self.num_measured >= 8 or self._cap < 0.25

    def ms(self, shape: StepShape) -> float:
        """What a step of this shape will take."""
        return sum(_terms(self._prices, shape))

    def most_within(self, limit_ms: float, most: int, shape: Callable[[int], StepShape]) -> int:
        """The most tokens, at most `most`, with which a step of shape(tokens) stays within limit_ms. O(log most)."""
        if limit_ms == math.inf or most <= 0 or self.ms(shape(most)) <= limit_ms:
            return max(most, 0)
        return bisect_right(range(1, most), limit_ms, key=lambda num_tokens: self.ms(shape(num_tokens)))

    def learn(self, shape: StepShape, ms: float) -> None:
        """A step of this shape took so long."""
        terms = _terms(self._prices, shape)
        predicted = sum(terms)
        if not (math.isfinite(ms) and ms > 0 and predicted > 0):
            return
        self.latest = off = 2 * (ms - predicted) / (ms + predicted)
        self.num_measured += 1
        weight = max(RECENT, 1 / self.num_measured)
        self.error += weight * (abs(off) - self.error)
        self.bias += weight * (off - self.bias)
        if not self._cap:
            return
        shares = [term / predicted for term in terms]
        spread = [sum(map(mul, row, shares)) for row in self._covariance]
        variance = sum(map(mul, shares, spread)) + NOISE
        most = 3 * math.sqrt(variance)  # what is further off says that something else had the machine
        pull = max(-most, min(most, off)) / variance
        self._surprises = self._surprises + 1 if abs(off) > most else 0
        for i, (gain, row) in enumerate(zip(spread, self._covariance, strict=True)):
            step = gain * pull
            step = step if -1.9 < step < 1.9 else math.copysign(1.9, step)
            self._prices[i] *= (2 + step) / (2 - step)
            self._covariance[i] = row = [a - gain * b / variance for a, b in zip(row, spread, strict=True)]
            row[i] += DRIFT if row[i] < self._cap else 0.0
        if self._surprises == 4:  # in a row: it is another machine now
            self._doubt()

    def _doubt(self) -> None:
        """Of the prices' logarithms: the whole machine may be faster or slower, and each price on its own."""
        self._covariance = [[self._cap * (5.0 if i == j else 4.0) for j in range(6)] for i in range(6)]
        self._surprises = 0


def _terms(prices: Sequence[float], shape: StepShape) -> tuple[float, ...]:
    tokens_ms = prices[1] * shape[0]
    by_weights = prices[0] >= tokens_ms
    of_rest = prices[2] * shape[2], prices[3] * shape[3], prices[4] * shape[1], prices[5]
    return (prices[0] if by_weights else 0.0, 0.0 if by_weights else tokens_ms, *of_rest)
