# SPDX-License-Identifier: Apache-2.0
"""Arrival processes and lengths: their rates, their spread, their seeds."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve.errors import InvalidInput
from pagedserve.simulate import workload as w


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 100.0])
@pytest.mark.parametrize(
    "profile", [w.steady(20, 200), w.spike(5, 10, at_s=50, length_s=60, duration_s=200), w.ramp(0, 40, climb_s=200)]
)
def test_as_many_come_as_the_rate_says(profile, burstiness):
    times = list(profile.arrivals(7, burstiness))
    # The count of a renewal process varies as its gaps do: by 1 / burstiness of the mean.
    assert abs(len(times) - profile.expected) < 4 * math.sqrt(profile.expected / burstiness) + 1
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= profile.duration_s


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_spread_as_asked(burstiness):
    times = list(w.steady(100, 300).arrivals(3, burstiness))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_a_spike_is_where_it_was_put():
    profile = w.spike(10, 10, at_s=20, length_s=5, duration_s=60)
    times = list(profile.arrivals(1))
    inside = sum(20 <= t < 25 for t in times)
    assert inside == pytest.approx(500, abs=4 * math.sqrt(500))
    assert len(times) - inside == pytest.approx(550, abs=4 * math.sqrt(550))
    assert [profile.rate(t) for t in (0, 19.9, 20, 24.9, 25, 59, 60, -1)] == [10, 10, 100, 100, 10, 10, 0, 0]


def test_a_ramp_climbs():
    profile = w.ramp(0, 50, climb_s=100, before_s=10, after_s=10)
    times = list(profile.arrivals(2))
    halves = sum(10 <= t < 60 for t in times), sum(60 <= t < 110 for t in times)
    assert halves[1] / halves[0] == pytest.approx(3, rel=0.2)
    assert profile.rate(60) == 25


def test_seeds_decide_everything():
    profile = w.steady(10, 20)
    assert list(profile.arrivals(5)) == list(profile.arrivals(5)) != list(profile.arrivals(6))
    lengths = w.lognormal(100, 1.0, 1000)
    made = [list(w.requests(profile.arrivals(5), lengths, lengths, seed=9)) for _ in range(2)]
    assert made[0] == made[1]
    firsts = [request.prompt[0] for request in made[0]]
    assert len(set(firsts)) == len(firsts)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_arrivals_stay_in_order_and_inside_whatever_the_rates(segments, seed):
    try:
        profile = w.RateProfile([w.Segment(*segment) for segment in segments])
    except InvalidInput:
        assert sum(d * (a + b) for d, a, b in segments) == 0
        return
    times = list(itertools.islice(profile.arrivals(seed), 5000))
    assert times == sorted(times)
    assert all(0 <= t <= profile.duration_s + 1e-9 for t in times)


def test_lognormal_has_the_mean_it_was_given():
    draw, clock = w.lognormal(200, 0.9, 100_000), random.Random(1)
    assert statistics.fmean(draw(clock) for _ in range(20_000)) == pytest.approx(200, rel=0.03)
    cut = w.lognormal(200, 0.9, 300)
    assert {cut(clock) <= 300 for _ in range(1000)} == {True}


@pytest.mark.parametrize(
    "make",
    [
        lambda: w.steady(0, 10),
        lambda: w.steady(math.nan, 10),
        lambda: w.steady(10, math.inf),
        lambda: w.steady(-1, 10),
        lambda: w.spike(1, 10, at_s=50, length_s=20, duration_s=60),
        lambda: list(w.steady(1, 10).arrivals(0, 0.0)),
        lambda: w.fixed(0),
        lambda: w.lognormal(0.5, 1, 10),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(InvalidInput):
        make()
