# SPDX-License-Identifier: Apache-2.0
"""The scatter of measured steps around a cost: kept in mean and spread, drawn without a state."""

from __future__ import annotations

import random
import statistics

import pytest

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.jitter import Jittered

COST = StepCurve([(1, 5.0), (256, 130.0)], context_ms=1e-3)


def shapes(num_tokens, count=2000):
    return [StepShape(num_tokens, num_tokens, context, 0) for context in range(count)]


def measured(scatter, seed=1):
    clock = random.Random(seed)
    sizes = [1, 2, 3, 8, 32, 256] * 100
    return [(shape, COST.ms(shape) * scatter(clock)) for shape in (StepShape(n, n, 40 * n, 0) for n in sizes)]


def test_mean_and_spread_are_those_of_the_measured_steps():
    law = Jittered(COST, measured(lambda clock: clock.lognormvariate(0.05, 0.2)))
    for num_tokens in (2, 256):
        ratios = [law.ms(shape) / COST.ms(shape) for shape in shapes(num_tokens)]
        assert statistics.fmean(ratios) == pytest.approx(1.07, abs=0.06)
        assert statistics.stdev(ratios) == pytest.approx(0.21, abs=0.06)


def test_scatter_is_that_of_steps_of_about_the_same_cost():
    steps = [(StepShape(1, 1, n, 0), COST.ms(StepShape(1, 1, n, 0)) * (1 + n % 2)) for n in range(100)]
    law = Jittered(COST, steps + [(StepShape(256, 1, 0, 0), 130.0)] * 100)
    assert {round(law.ms(shape) / COST.ms(shape), 6) for shape in shapes(256)} == {1.0}
    assert {round(law.ms(shape) / COST.ms(shape), 1) for shape in shapes(1, 50)} == {1.0, 2.0}


def test_of_steps_of_one_cost_all_are_drawn_from():
    flat = StepCurve([(1, 5.0), (256, 130.0)])  # of any context, so that a slow beginning stands in front of its like
    steps = [(StepShape(1, 1, n, 0), 10.0 if n < 200 else 5.0) for n in range(1000)]
    law = Jittered(flat, steps)
    assert statistics.fmean(law.ms(shape) for shape in shapes(1)) == pytest.approx(6.0, rel=0.05)


def test_a_step_takes_what_it_took_before_and_another_seed_draws_otherwise():
    steps = measured(lambda clock: clock.lognormvariate(0.0, 0.3))
    law, other = Jittered(COST, steps), Jittered(COST, steps, seed=1)
    forward = [law.ms(shape) for shape in shapes(8)]
    assert [law.ms(shape) for shape in reversed(shapes(8))] == forward[::-1]
    assert sum(a == b for a, b in zip(forward, map(other.ms, shapes(8)), strict=True)) < 200


def test_a_cost_without_measured_steps_is_refused():
    with pytest.raises(InvalidInput, match="at least one"):
        Jittered(COST, [])
