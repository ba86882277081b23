# SPDX-License-Identifier: Apache-2.0
"""A machine's pace, played back: kept in mean and in its slow spells, and without a state."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest
from sim_parts import CONFIG, ask

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.cluster import Cluster
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.pace import Paced, steps_ms

COST = StepCurve([(1, 10.0), (256, 265.0)])
ONE, MANY = StepShape(1, 1, 0, 0), StepShape(256, 1, 0, 0)  # 10 and 265 ms


def measured(*spells):
    """Steps of 10 ms at each pace, as many as are said."""
    return [(ONE, 10.0 * pace) for count, pace in spells for _ in range(count)]


def test_a_step_takes_what_the_paces_meanwhile_make_of_it():
    law = Paced(COST, measured((10, 1.0), (10, 2.0)))  # 100 ms fast, 200 ms slow
    assert law.ms_at(ONE, 0.05) == pytest.approx(10.0)
    assert law.ms_at(ONE, 0.15) == pytest.approx(20.0)
    assert law.ms_at(ONE, 0.095) == pytest.approx(15.0)  # half in the one, half in the other
    assert law.ms_at(ONE, 0.35) == law.ms_at(ONE, 0.65) == pytest.approx(10.0)  # and again from the beginning
    assert law.ms_at(MANY, 0.0) == pytest.approx(300.0 + 65.0)  # 200 ms of work are a round, 65 more are fast
    assert law.ms(ONE) == pytest.approx(15.0)


def test_steps_on_end_take_what_the_measured_steps_took():
    clock = random.Random(1)
    steps = [(StepShape(n, n, 0, 0), 0.0) for n in clock.choices([1, 2, 8, 64, 256], k=500)]
    steps = [(shape, COST.ms(shape) * clock.lognormvariate(0.0, 0.4)) for shape, _ in steps]
    law, t = Paced(COST, steps, begin_s=3.0), 7.0
    for shape, _ in steps:
        t += law.ms_at(shape, t) / 1e3
    assert t - 7.0 == pytest.approx(sum(ms for _, ms in steps) / 1e3)


def test_slow_spells_stay_together_wherever_it_begins():
    steps = measured((100, 1.0), (100, 3.0))
    assert Paced(COST, steps, begin_s=2.5).ms_at(ONE, 0.0) == Paced(COST, steps).ms_at(ONE, 2.5) == pytest.approx(30.0)
    law = Paced(COST, steps, begin_s=0.7)
    series = [law.ms_at(ONE, 0.05 * i) > 20 for i in range(400)]
    assert sum(a != b for a, b in pairwise(series)) == 10  # two in each round of 4 s
    assert statistics.fmean(series) == pytest.approx(0.75, abs=0.01)


def test_a_row_of_decodes_is_a_step_after_the_other():
    clock = random.Random(2)
    cost = StepCurve([(1, 7.0), (64, 20.0)], context_ms=0.01)
    law = Paced(cost, [(ONE, 7.0 * clock.lognormvariate(0.0, 0.5)) for _ in range(300)])
    first, t = StepShape(3, 3, 200, 0), 1.25
    for ms, steps in zip(steps_ms(law, first, 50, t), range(50), strict=True):
        assert ms == law.ms_at(first.later(steps), t)
        t += ms / 1e3
    assert steps_ms(cost, first, 50, t) == [cost.ms(first.later(steps)) for steps in range(50)]


def test_pauses_pass_at_the_mean_pace():
    law = Paced(COST, [(None, 100.0), *measured((10, 1.0)), (None, 50.0), *measured((10, 3.0)), (None, 0.0)])
    assert law.ms(ONE) == law.ms_at(ONE, 0.05) == law.ms_at(ONE, 0.22) == pytest.approx(20.0)
    assert (law.ms_at(ONE, 0.12), law.ms_at(ONE, 0.3)) == pytest.approx((10.0, 30.0))
    with pytest.raises(InvalidInput, match="at least one"):
        Paced(COST, [(None, 5.0)])


def test_replicas_have_slow_spells_of_their_own():
    law = Paced(COST, measured((100, 1.0), (100, 3.0)))
    cluster = Cluster(CONFIG, law, num_replicas=4)
    results = cluster.run([ask(0.0, 1, 2, first=1000 * i) for i in range(40)])
    waits = [round(1e3 * wait) for wait in results.ttfts]
    assert len(set(waits)) >= 2
    assert law.elsewhere(0).ms_at(ONE, 0.3) == law.ms_at(ONE, 0.3)
    assert statistics.fmean(law.elsewhere(i).ms_at(ONE, 0.3) for i in range(64)) == pytest.approx(25.0, rel=0.1)


def test_a_cost_without_measured_steps_is_refused():
    with pytest.raises(InvalidInput, match="at least one"):
        Paced(COST, [])
