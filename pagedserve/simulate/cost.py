# SPDX-License-Identifier: Apache-2.0
"""What a step takes in virtual time. Anything that says so for a step's shape will do: the scheduler's own StepPrices,
or a curve as it was measured,

    ms = curve(num_tokens) + context_ms * context + pair_ms * pairs + seq_ms * num_seqs

which is the formula of scheduling/cost.py with straight lines between knots, the last one going on, in place of
max(weights, token * tokens) + step. A roofline's curve is that very maximum; measured steps have corners of their own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Protocol

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepPrices, StepShape


class StepLaw(Protocol):
    """What a step of a shape takes."""

    def ms(self, shape: StepShape) -> float: ...


class StepCurve:
    """The formula above.

    Args:
        knots: (num_tokens, ms), rising in tokens; at least one.
        context_ms, pair_ms, seq_ms: as in StepPrices, each at least 0.

    Raises:
        InvalidInput: a knot or a price cannot be.
    """

    def __init__(
        self,
        knots: Iterable[tuple[float, float]],
        *,
        context_ms: float = 0.0,
        pair_ms: float = 0.0,
        seq_ms: float = 0.0,
    ) -> None:
        self.knots = tuple(knots)
        self.context_ms, self.pair_ms, self.seq_ms = context_ms, pair_ms, seq_ms
        prices = [context_ms, pair_ms, seq_ms, *(ms for _, ms in self.knots)]
        if not self.knots or not all(math.isfinite(price) and price >= 0 for price in prices):
            raise InvalidInput(f"a step's curve needs knots, and prices of at least 0 ms; got {self}")
        self._tokens = [tokens for tokens, _ in self.knots]
        if any(b <= a for a, b in zip(self._tokens, self._tokens[1:], strict=False)):
            raise InvalidInput(f"the knots of a step's curve rise in tokens; got {self._tokens}")
        self._known: dict[int, float] = {}  # by num_tokens: steps repeat themselves

    def __repr__(self) -> str:
        prices = f"context_ms={self.context_ms:.3g}, pair_ms={self.pair_ms:.3g}, seq_ms={self.seq_ms:.3g}"
        return f"StepCurve({list(self.knots)}, {prices})"

    def ms(self, shape: StepShape) -> float:
        """Of a step, O(1)."""
        num_tokens, num_seqs, context, pairs = shape
        return self._fixed(num_tokens) + self.context_ms * context + self.pair_ms * pairs + self.seq_ms * num_seqs

    def decode_ms(self, shape: StepShape, count: int) -> list[float]:
        """As the function, to the bit of `ms`."""
        num_tokens, num_seqs, context, _ = shape
        fixed, of_context, of_seqs = self._fixed(num_tokens), self.context_ms, self.seq_ms * num_seqs
        contexts = range(context, context + count * num_seqs, num_seqs)
        return [fixed + of_context * keys + of_seqs for keys in contexts]

    def _fixed(self, num_tokens: int) -> float:
        fixed = self._known.get(num_tokens)
        if fixed is None:
            weights = hat_weights(num_tokens, self._tokens)
            mixed = sum(weight * ms for weight, (_, ms) in zip(weights, self.knots, strict=True))
            fixed = self._known[num_tokens] = max(0.0, mixed)
        return fixed

    def prices(self) -> StepPrices:
        """What a scheduler that has measured many such steps knows of them."""
        (_, least_ms), (tokens, most_ms) = self.knots[0], self.knots[-1]
        own = {"context_ms": self.context_ms, "pair_ms": self.pair_ms, "seq_ms": self.seq_ms}
        return StepPrices(weights_ms=least_ms, token_ms=most_ms / tokens, **own, step_ms=0.0, uncertainty=0.2)


def hat_weights(tokens: float, knots: Sequence[float]) -> list[float]:
    """How StepCurve mixes the value at `tokens` from those at its knots; they sum to 1, and may be negative beyond."""
    weights = [0.0] * len(knots)
    if len(knots) == 1 or tokens <= knots[0]:
        weights[0] = 1.0
        return weights
    place = min(bisect_right(knots, tokens), len(knots) - 1)
    share = (tokens - knots[place - 1]) / (knots[place] - knots[place - 1])
    weights[place - 1], weights[place] = 1.0 - share, share
    return weights
