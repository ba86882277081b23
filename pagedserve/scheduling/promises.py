# SPDX-License-Identifier: Apache-2.0
"""When would a newcomer get its first token: from the backlog, the cost model, and how far both were wrong before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import CostModel, StepShape
from pagedserve.scheduling.request import Sequence as Request

ON_TIME = 0.99  # of predicted first tokens that come no later than margin times their prediction
LEARN = 0.1  # how fast the margin follows
PACE_STEPS, PACE_LEARN = 12, 1 / 32  # a run of steps, about what a short answer takes; how fast the pace follows
STALE_S = 10.0  # without a measured step what was learnt binds nobody: the machine may have recovered


class Load(NamedTuple):
    """What stands before a newcomer."""

    num_decodes: int
    context: int  # of these
    ahead_seqs: int
    ahead_tokens: int  # to be computed before the newcomer's
    own_tokens: int
    free_steps: float  # decode steps until there are a row and pages for it
    row_steps: float  # decode steps between two that make place, where place is short
    limit_ms: float  # that a step beside decodes may take


class Forecast(NamedTuple):
    """In ms: until the first token, of a decode step from then on, and between two such newcomers."""

    first_ms: float
    step_ms: float
    between_ms: float


def forecast(cost: CostModel, config: SchedulerConfig, load: Load) -> Forecast:
    """Those ahead are computed in mixed steps, among as many decodes as there will be halfway. O(log tokens)."""
    decodes = min(config.max_seqs - 1, load.num_decodes + load.ahead_seqs // 2)
    mean = load.context / load.num_decodes if load.num_decodes else float(load.own_tokens)
    context, own = int(decodes * mean), max(1, load.own_tokens)

    def mixed(num_tokens: int) -> StepShape:
        num_prompts = -(-num_tokens // own)
        return StepShape(decodes + num_tokens, decodes + num_prompts, context, num_tokens * min(own, num_tokens) // 2)

    tokens = load.ahead_tokens + own
    most = max(1, min(tokens, config.max_step_tokens - decodes))
    limit_ms = load.limit_ms if decodes else math.inf
    chunk = max(min(config.page_size, most), cost.most_within(limit_ms, most, mixed))
    mixed_ms, step_ms = cost.ms(mixed(chunk)), cost.ms(StepShape(decodes, decodes, context, 0))
    steps = -(-tokens // chunk)
    first_ms = steps * mixed_ms + max(0.0, load.free_steps - steps) * step_ms
    return Forecast(first_ms, step_ms, max(mixed_ms * own / chunk, load.row_steps * step_ms))


def expected_left(produced: int, max_tokens: int, share: float) -> float:
    """Tokens that a sequence has yet to give, where such ones give that share of their max_tokens."""
    left = share * max_tokens - produced
    return max(1.0, left if left > 0 else share * (max_tokens - produced))


class Lefts(NamedTuple):
    """Tokens that those that run have to go, expected and rising; and from a start to an end."""

    tokens: list[float]
    cycle: float

    @staticmethod
    def of(running: Sequence[Request], share: float) -> Lefts:
        """Where such ones give that share of their max_tokens."""
        outputs = [(len(seq.tokens) - seq.num_prompt, seq.max_len - seq.num_prompt) for seq in running]
        cycle = share * sum(most for _, most in outputs) / max(1, len(outputs))
        return Lefts(sorted(expected_left(produced, most, share) for produced, most in outputs), cycle)


def free_steps(lefts: Lefts, missing: int) -> float:
    """Decode steps until `missing` of the running have made place; whoever takes one gives it up a cycle later."""
    if missing <= 0 or not lefts.tokens:
        return 0.0
    rounds, place = divmod(missing - 1, len(lefts.tokens))
    return lefts.tokens[place] + rounds * lefts.cycle


class Trust:
    """How far predictions were wrong, and what to make of it.

    Attributes:
        stretch: seconds that pass per second of predicted steps: what the loop does between them.
        margin: what predicted waits are multiplied by, that ON_TIME of first tokens come before.
        pace: what predicted steps are multiplied by, that ON_TIME of runs of PACE_STEPS take no longer. It is by such
            runs that a TPOT target is kept: where steps meet it on average, half of the answers miss it.
        output_share: of max_tokens that requests use.
        error: of predicted first tokens, relative, recent ones.
    """

    def __init__(self) -> None:
        self.stretch, self.margin, self.pace, self.output_share = 1.0, 1.2, 1.1, 1.0
        self.error = self._recent = 0.0

    def period_took(self, predicted_s: float, seconds: float) -> None:
        """From one step's end to the next."""
        self.stretch += 0.05 * (min(3.0, max(1.0, seconds / predicted_s)) - self.stretch)

    def step_was_off(self, error: float) -> None:
        """By its relative error, positive where it took longer than predicted."""
        self._recent += (error - self._recent) / PACE_STEPS
        pull = PACE_LEARN * (ON_TIME if 1 + self._recent > self.pace else ON_TIME - 1)
        self.pace = min(1.5, max(1.05, self.pace * (1 + pull)))

    def first_token_took(self, predicted_s: float, seconds: float, step_s: float) -> None:
        """Of a request that had to wait. A step more or less is no error."""
        ratio = (seconds + step_s) / (predicted_s + step_s)
        self.error += LEARN * (min(2.0, abs(ratio - 1.0)) - self.error)
        late = ratio > self.margin
        self.margin = min(4.0, max(1.05, self.margin * (1 + LEARN * (ON_TIME if late else ON_TIME - 1))))

    def output_was(self, num_tokens: int, max_tokens: int) -> None:
        """Of a request that ended of itself."""
        self.output_share += 0.02 * (num_tokens / max_tokens - self.output_share)
