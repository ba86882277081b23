# SPDX-License-Identifier: Apache-2.0
"""The oracles of admission: by hand, and above what any policy here reaches."""

from __future__ import annotations

import pytest
from sim_parts import ask, config

from pagedserve.simulate import workload as w
from pagedserve.simulate.cluster import simulate
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.oracle import compare, drain_share


def test_drain_share_by_hand():
    slo = w.Slo(ttft_s=1.0)
    # 10 ms a token: a prompt of 50 takes 0.5 s, then its output of 50 another 0.5 s.
    stream = [ask(t, 50, 50, slo=slo) for t in (0.0, 0.0, 0.3, 0.5, 2.0)]
    # Taken: the first (first token at 0.5, free at 1); the fourth, whose first token comes after 1 s exactly; the last,
    # who is alone. The second and the third would get theirs after 1.5 s and 1.2 s.
    assert drain_share(stream, 0.01) == pytest.approx(3 / 5)
    assert drain_share(stream, 1e-6) == 1.0
    assert drain_share([], 0.01) == 1.0


COST = StepCurve([(1, 6), (128, 8), (256, 12), (512, 22)], context_ms=1e-4, pair_ms=1e-6, seq_ms=5e-3)
CONFIG = config(num_pages=8192, max_seqs=64, max_step_tokens=512)


def test_oracles_stand_above_the_unbounded_queue():
    profile = w.spike(15, 8, at_s=5, length_s=5, duration_s=20)

    def stream():
        return w.requests(profile.arrivals(1), w.lognormal(200, 0.5, 1000), w.fixed(40), slo=w.Slo(1.0), seed=2)

    found = compare(CONFIG, COST, stream, bounds=(4, 16, 64))
    assert found.oracle >= found.hindsight > found.unbounded.kept_share + 0.1
    assert found.oracle >= found.promised.kept_share - 0.03
    assert found.bound in (4, 16, 64)


@pytest.mark.parametrize("name", ["overload of 1.3", "ten times the usual"])
def test_promises_come_within_three_points_of_an_oracle(name):
    """And who is admitted is on time."""
    crowd = w.requests(
        w.steady(2000.0, 0.5).arrivals(1), w.lognormal(200, 0.5, 1000), w.lognormal(40, 0.5, 200), seed=2
    )
    saturated = simulate(CONFIG, COST, crowd, promises=False)
    capacity = len(saturated) / saturated.end_s
    overload = w.steady(1.3 * capacity, 15.0)
    usual = w.spike(0.5 * capacity, 10.0, at_s=3.0, length_s=5.0, duration_s=14.0)
    profile = overload if name == "overload of 1.3" else usual

    def stream():
        lengths = w.lognormal(200, 0.5, 1000), w.lognormal(40, 0.5, 200)
        return w.requests(profile.arrivals(1), *lengths, slo=w.Slo(1.0), seed=2)

    found = compare(CONFIG, COST, stream, bounds=(8, 16, 32))
    assert found.promised.kept_share >= found.oracle - 0.03
    assert found.promised.kept_of_served >= 0.99
    assert found.promised.retry_after_s.p50 > 0
