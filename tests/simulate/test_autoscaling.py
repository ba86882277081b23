# SPDX-License-Identifier: Apache-2.0
"""Autoscaling policies as functions of a load, and the bounds around them."""

from __future__ import annotations

import math

import pytest

from pagedserve.errors import InvalidInput
from pagedserve.simulate import autoscaling as scale


def load(**changes):
    fields = {
        "t": 0.0,
        "ready": 2,
        "starting": 0,
        "backlog_tokens": 0.0,
        "arriving_tokens_per_s": 0.0,
        "trend_tokens_per_s2": 0.0,
        "replica_tokens_per_s": 1000.0,
        "start_s": 60.0,
    }
    return scale.Load(**{**fields, **changes})


def test_seconds_to_drain_of_a_load():
    assert load(backlog_tokens=5000).seconds_to_drain == 2.5
    assert load(ready=0, backlog_tokens=1).seconds_to_drain == math.inf
    assert load(ready=0).seconds_to_drain == 0.0


def test_backlog_tokens():
    policy = scale.backlog_tokens(4000)
    assert [policy(load(backlog_tokens=tokens)) for tokens in (0, 1, 4000, 4001, 40_000)] == [0, 1, 1, 2, 10]


def test_seconds_to_drain_keeps_up_and_catches_up():
    policy = scale.seconds_to_drain(10.0)
    assert policy(load(arriving_tokens_per_s=2500)) == 3
    assert policy(load(arriving_tokens_per_s=2500, backlog_tokens=15_000)) == 4


def test_predictive_looks_as_far_as_a_start_takes():
    policy = scale.predictive(10.0, headroom=1.0)
    assert policy(load(arriving_tokens_per_s=2000)) == 2
    # In 60 s 5000 tokens/s will come, and 60 s * 1500 tokens/s will have piled up.
    assert policy(load(arriving_tokens_per_s=2000, trend_tokens_per_s2=50)) == math.ceil((5000 + 9000) / 1000)
    assert policy(load(arriving_tokens_per_s=2000, trend_tokens_per_s2=50, start_s=1e-9)) == 3
    # A falling rate is not counted on; a backlog that will be gone calls for nobody.
    assert policy(load(arriving_tokens_per_s=2000, trend_tokens_per_s2=-50)) == 2
    assert policy(load(arriving_tokens_per_s=500, backlog_tokens=10_000)) == 1


@pytest.mark.parametrize("more", ["backlog_tokens", "arriving_tokens_per_s", "trend_tokens_per_s2"])
@pytest.mark.parametrize("policy", [scale.backlog_tokens(500), scale.seconds_to_drain(5), scale.predictive(5)])
def test_more_work_never_calls_for_fewer(policy, more):
    wanted = [policy(load(**{"arriving_tokens_per_s": 900.0, more: 1000.0 * step})) for step in range(20)]
    assert wanted == sorted(wanted)


def test_up_at_once_down_after_a_while_to_the_most_wanted_meanwhile():
    wants = iter([2, 6, 3, 4, 1, 1, 1, 1, 9])
    scaler = scale.Autoscaler(lambda load: next(wants), least=2, most=8, down_after_s=20.0)
    have, seen = 2, []
    for step in range(9):
        have = scaler.desired(load(t=10.0 * step, ready=have))
        seen.append(have)
    # 6 is wanted at 10 s and counts until 30 s, 4 at 30 s until 50 s; 9 is above the bound.
    assert seen == [2, 6, 6, 4, 4, 2, 2, 2, 8]


def test_a_scaler_does_not_go_down_before_it_has_looked_long_enough():
    scaler = scale.Autoscaler(lambda load: 1, down_after_s=30.0)
    assert [scaler.desired(load(t=t, ready=5)) for t in (0.0, 10.0, 20.0, 30.0)] == [5, 5, 5, 1]


def test_trend_finds_a_rate_and_its_climb():
    steady, climbing = scale.Trend(10.0), scale.Trend(10.0)
    for second in range(200):
        steady.observe(second, 70.0)
        climbing.observe(second, 10.0 + 2.0 * second)
    assert steady.rate == pytest.approx(70.0, rel=1e-3)
    assert steady.climb == pytest.approx(0.0, abs=1e-2)
    assert climbing.rate == pytest.approx(10 + 2 * 199, rel=0.02)
    assert climbing.climb == pytest.approx(2.0, rel=0.05)
    before = climbing.rate
    climbing.observe(199, 1000.0)  # no time has passed
    assert climbing.rate == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: scale.backlog_tokens(0),
        lambda: scale.seconds_to_drain(-1),
        lambda: scale.predictive(math.inf),
        lambda: scale.Trend(0),
        lambda: scale.Autoscaler(lambda load: 1, least=0),
        lambda: scale.Autoscaler(lambda load: 1, least=3, most=2),
        lambda: scale.Autoscaler(lambda load: 1, down_after_s=-1),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(InvalidInput):
        make()
