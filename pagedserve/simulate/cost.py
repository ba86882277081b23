# SPDX-License-Identifier: Apache-2.0
"""What a step costs, in seconds of virtual time.

    step_s = curve(num_tokens) + context_s * decode_context + attend_s * chunk_context + row_s * num_rows

curve is the work that does not depend on context: straight lines between knots, the last one going on. A roofline's is
max(time to read the weights, time to multiply num_tokens) plus the launch; that of measured steps is what they say.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.events import StepPlan


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computes.

    Attributes:
        num_tokens: of decodes and chunks.
        num_rows: that sample.
        decode_context: tokens of keys and values that the decodes read, summed.
        chunk_context: pairs of a chunk's token and a token it attends to.
    """

    num_tokens: int
    num_rows: int
    decode_context: int
    chunk_context: int


def work_of(plan: StepPlan) -> StepWork:
    """The work of a plan, which knows its own shape."""
    shape = plan.shape
    num_rows = len(plan.decode_ids) + sum(chunk.samples for chunk in plan.chunks)
    return StepWork(shape.num_tokens, num_rows, shape.context, shape.pairs)


class StepCost:
    """The formula above.

    Args:
        curve: knots (num_tokens, seconds), rising in tokens; at least one.
        context_s, attend_s, row_s: seconds each, at least 0.

    Raises:
        InvalidInput: a knot or a price cannot be.
    """

    def __init__(
        self, curve: Iterable[tuple[float, float]], *, context_s: float = 0.0, attend_s: float = 0.0, row_s: float = 0.0
    ) -> None:
        self.curve = tuple(curve)
        self.context_s, self.attend_s, self.row_s = context_s, attend_s, row_s
        prices = [context_s, attend_s, row_s, *(seconds for _, seconds in self.curve)]
        if not self.curve or not all(math.isfinite(price) and price >= 0 for price in prices):
            raise InvalidInput(f"a step's cost needs knots, and seconds of at least 0; got {self}")
        self._tokens = [tokens for tokens, _ in self.curve]
        if any(b <= a for a, b in zip(self._tokens, self._tokens[1:], strict=False)):
            raise InvalidInput(f"the knots of a step's cost rise in tokens; got {self._tokens}")
        self._known: dict[int, float] = {}  # curve, by num_tokens: steps repeat themselves

    def __repr__(self) -> str:
        prices = f"context_s={self.context_s:.3g}, attend_s={self.attend_s:.3g}, row_s={self.row_s:.3g}"
        return f"StepCost({list(self.curve)}, {prices})"

    def step_s(self, work: StepWork) -> float:
        """Seconds of a step, O(1)."""
        fixed = self._known.get(work.num_tokens)
        if fixed is None:
            fixed = self._known[work.num_tokens] = self._on_curve(work.num_tokens)
        rest = self.context_s * work.decode_context + self.attend_s * work.chunk_context + self.row_s * work.num_rows
        return fixed + rest

    def _on_curve(self, tokens: float) -> float:
        knots = self.curve
        if len(knots) == 1 or tokens <= knots[0][0]:
            return knots[0][1]
        place = min(bisect_right(self._tokens, tokens), len(knots) - 1)
        (t0, s0), (t1, s1) = knots[place - 1], knots[place]
        return max(0.0, s0 + (s1 - s0) * (tokens - t0) / (t1 - t0))


def hat_weights(tokens: float, knots: Sequence[float]) -> list[float]:
    """How StepCost mixes the value at `tokens` from those at its knots; they sum to 1, and may be negative beyond."""
    weights = [0.0] * len(knots)
    if len(knots) == 1 or tokens <= knots[0]:
        weights[0] = 1.0
        return weights
    place = min(bisect_right(knots, tokens), len(knots) - 1)
    share = (tokens - knots[place - 1]) / (knots[place] - knots[place - 1])
    weights[place - 1], weights[place] = 1.0 - share, share
    return weights
