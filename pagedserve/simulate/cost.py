# SPDX-License-Identifier: Apache-2.0
"""What a step takes in virtual time. Anything that says so for a step's shape will do: the scheduler's own StepPrices,
or a curve as it was measured,

    ms = curve(num_tokens) + context_ms * context + pair_ms * pairs + seq_ms * num_seqs

which is the formula of scheduling/cost.py with straight lines between knots, the last one going on, in place of
max(weights, token * tokens) + step. A roofline's curve is that very maximum; measured steps have corners of their own.

Keys and sequences may cost another amount where a prompt is computed beside them: a step that is busy with products
reads keys meanwhile. Measured decodes cost more where the batch is new: the n-th behind a prompt's step by settle_ms *
0.6^(n - 1), as caches and clocks become theirs again, and one behind which others came or went by change_ms.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepPrices, StepShape

# Of a StepCurve, beside its knots.
PRICES = "context_ms", "seq_ms", "mixed_context_ms", "mixed_seq_ms", "pair_ms", "settle_ms", "change_ms"
SETTLING = tuple(0.6**n for n in range(24))  # as measured, bench/NOTES.md


class Behind(NamedTuple):
    """Where a step stands: so many steps behind one that computed a prompt's tokens, and at once behind num_seqs."""

    steps: int
    num_seqs: int

    def after(self, shape: StepShape, count: int = 1) -> Behind:
        """Where the next one stands, behind count steps from this shape on, of which all but the first only decode."""
        return Behind(count if shape.pairs else self.steps + count, shape.num_seqs)


SETTLED = Behind(len(SETTLING) + 1, 0)


class StepLaw(Protocol):
    """What a step of a shape takes, where nothing is said of those before it."""

    def ms(self, shape: StepShape) -> float: ...


class StepCurve:
    """The formula above.

    Args:
        knots: (num_tokens, ms), rising in tokens; at least one.
        context_ms, pair_ms, seq_ms: as in StepPrices, each at least 0.
        mixed_context_ms, mixed_seq_ms: those of a step that computes a prompt's tokens; None: they are the same.
        settle_ms, change_ms: more for decodes whose batch is new, each at least 0.

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
        mixed_context_ms: float | None = None,
        mixed_seq_ms: float | None = None,
        settle_ms: float = 0.0,
        change_ms: float = 0.0,
    ) -> None:
        self.knots = tuple(knots)
        self.context_ms, self.pair_ms, self.seq_ms = context_ms, pair_ms, seq_ms
        self.mixed_context_ms = context_ms if mixed_context_ms is None else mixed_context_ms
        self.mixed_seq_ms = seq_ms if mixed_seq_ms is None else mixed_seq_ms
        self.settle_ms, self.change_ms = settle_ms, change_ms
        prices = [*(getattr(self, name) for name in PRICES), *(ms for _, ms in self.knots)]
        if not self.knots or not all(math.isfinite(price) and price >= 0 for price in prices):
            raise InvalidInput(f"a step's curve needs knots, and prices of at least 0 ms; got {self}")
        self._tokens = [tokens for tokens, _ in self.knots]
        if any(b <= a for a, b in zip(self._tokens, self._tokens[1:], strict=False)):
            raise InvalidInput(f"the knots of a step's curve rise in tokens; got {self._tokens}")
        self._known: dict[int, float] = {}  # by num_tokens: steps repeat themselves

    def __repr__(self) -> str:
        return f"StepCurve({list(self.knots)}, {', '.join(f'{name}={getattr(self, name):.3g}' for name in PRICES)})"

    def ms(self, shape: StepShape) -> float:
        """Of a step whose batch is not new, O(1)."""
        num_tokens, num_seqs, context, pairs = shape
        if pairs:
            beside = self.mixed_context_ms * context + self.pair_ms * pairs + self.mixed_seq_ms * num_seqs
        else:
            beside = self.context_ms * context + self.seq_ms * num_seqs
        return self._fixed(num_tokens) + beside

    def unsettled_ms(self, shape: StepShape, behind: Behind) -> float:
        """How much more it takes there, O(1)."""
        settling, changed = unsettled(shape, behind)
        return self.settle_ms * settling + self.change_ms * changed

    def decode_ms(self, shape: StepShape, count: int, behind: Behind = SETTLED) -> list[float]:
        """Of so many decodes one after the other, to the bit of `ms` and `unsettled_ms`."""
        num_tokens, num_seqs, context, _ = shape
        fixed, of_context, of_seqs = self._fixed(num_tokens), self.context_ms, self.seq_ms * num_seqs
        contexts = range(context, context + count * num_seqs, num_seqs)
        made = [fixed + (of_context * keys + of_seqs) for keys in contexts]
        for place in range(min(count, max(1, len(SETTLING) + 1 - behind.steps))):
            made[place] += self.unsettled_ms(shape, behind)
            behind = behind.after(shape)
        return made

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


def unsettled(shape: StepShape, behind: Behind) -> tuple[float, float]:
    """What settle_ms and change_ms count in a step that stands there."""
    if shape.pairs:
        return 0.0, 0.0
    changed = behind.steps > 1 and behind.num_seqs not in (0, shape.num_seqs)
    return SETTLING[behind.steps - 1] if behind.steps <= len(SETTLING) else 0.0, float(changed)


def priced(shape: StepShape, behind: Behind) -> tuple[float, ...]:
    """What each of PRICES counts in a step that stands there."""
    _, num_seqs, context, pairs = shape
    beside = (0, 0, context, num_seqs, pairs) if pairs else (context, num_seqs, 0, 0, 0)
    return *beside, *unsettled(shape, behind)


def step_ms(law: StepLaw, shape: StepShape, behind: Behind) -> float:
    """Of a step that stands there."""
    return law.ms(shape) + law.unsettled_ms(shape, behind) if isinstance(law, StepCurve) else law.ms(shape)


def steps_in_a_row(law: StepLaw, shapes: Iterable[StepShape]) -> Iterator[float]:
    """What steps take that follow each other."""
    behind = SETTLED
    for shape in shapes:
        yield step_ms(law, shape, behind)
        behind = behind.after(shape)


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
