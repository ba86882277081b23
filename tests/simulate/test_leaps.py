# SPDX-License-Identifier: Apache-2.0
"""Many steps at once are the same, to the bit, as one after the other; and they are few."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import astuple, replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sim_parts import CONFIG, COST, ask, config

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices, StepShape
from pagedserve.scheduling.scheduler import Scheduler
from pagedserve.simulate import workload as w
from pagedserve.simulate.autoscaling import Autoscaler, seconds_to_drain
from pagedserve.simulate.balancing import BALANCERS, find_balancer
from pagedserve.simulate.cluster import Cluster, Scaling, simulate
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.pace import Paced

BEAT_S = 1 / 128  # so that arrivals, looks, deadlines and ends of steps meet, exactly
LAWS = (
    StepCurve([(512, BEAT_S * 1e3)]),
    StepCurve([(1, 7.3), (64, 9.1), (512, 40.0)], context_ms=3.1e-3, pair_ms=1e-5, seq_ms=0.07),
    StepCurve([(1, 7.3), (512, 40.0)], context_ms=0.01, mixed_seq_ms=0.3, settle_ms=2.1, change_ms=0.7),
    StepPrices(weights_ms=5.0, token_ms=0.1, context_ms=1e-3, seq_ms=0.03),
    Paced(
        StepCurve([(1, 7.3), (512, 40.0)], settle_ms=2.1, change_ms=0.7),
        [(StepShape(1, 1, 0, 0), 5.0 + 3.7 * n % 11) for n in range(50)],
    ),
)
seconds = st.one_of(st.none(), st.sampled_from([0.0625, 0.25, 1.0, 5.0]))

configs = st.builds(
    config,
    num_pages=st.sampled_from([45, 80, 4096]),
    page_size=st.sampled_from([4, 16]),
    max_seqs=st.sampled_from([1, 4, 32]),
    max_step_tokens=st.sampled_from([32, 64, 512]),
    max_model_len=st.just(180),
    prefix_cache=st.booleans(),
    num_host_pages=st.sampled_from([0, 40]),
    max_queue=st.sampled_from([None, 4]),
    tpot_target_s=st.sampled_from([None, 0.012]),
    prices=st.sampled_from([StepPrices(), StepPrices(uncertainty=0.05), StepPrices(weights_ms=10.0, uncertainty=0.0)]),
)
crowds = st.lists(
    st.builds(
        ask,
        arrival_s=st.one_of(st.integers(0, 384).map(lambda n: n * BEAT_S), st.floats(0.0, 3.0)),
        prompt=st.integers(1, 60),
        output=st.integers(1, 110),
        first=st.sampled_from([0, 0, 40, 1000]),
        slo=st.builds(w.Slo, ttft_s=seconds, tpot_s=st.sampled_from([None, 0.011]), total_s=seconds),
    ),
    min_size=1,
    max_size=25,
)


def everything(leaping: bool, settings: SchedulerConfig, law: Any, crowd: list[w.Request], **cluster: Any) -> list[Any]:
    """All that a run says, and what its schedulers learnt."""
    stepwise = mock.patch.object(Scheduler, "horizon", return_value=(0, math.inf))
    with nullcontext() if leaping else stepwise:
        run = Cluster(settings, law, **cluster)
        results = run.run(crowd)
    learnt = []
    for replica in run._ready + run._leaving:
        admission = replica.scheduler.admission
        learnt += [astuple(replica.scheduler.stats()), vars(admission.cost), vars(admission.trust), replica.steps]
    return [{name: repr(value) for name, value in vars(results).items()}, learnt]


@given(
    settings=configs,
    law=st.sampled_from(LAWS),
    crowd=crowds,
    more_tokens=st.sampled_from([0, 0, 30]),
    replicas=st.integers(1, 3),
    balancer=st.sampled_from(sorted(BALANCERS)),
    scales=st.booleans(),
    returns=st.integers(0, 1),
    promises=st.booleans(),
)
@effort(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_leaps_change_nothing(settings, law, crowd, more_tokens, replicas, balancer, scales, returns, promises) -> None:
    crowd = [replace(asked, max_tokens=asked.output_tokens + more_tokens) for asked in crowd]
    crowd.sort(key=lambda asked: asked.arrival_s)

    def run(leaping: bool) -> list[Any]:
        scaling = Scaling(Autoscaler(seconds_to_drain(0.5), most=4, down_after_s=0.5), 0.375, 2000.0, every_s=0.25)
        return everything(
            leaping,
            settings,
            law,
            crowd,
            num_replicas=replicas,
            balancer=find_balancer(balancer),
            scaling=scaling if scales else None,
            returns=returns,
            promises=promises,
            sample_s=0.125,
        )

    assert run(True) == run(False)


def test_a_long_answer_takes_few_leaps() -> None:
    alone = config(num_pages=10_000, max_model_len=120_000)
    for output in (1_000, 100_000):
        with (
            mock.patch.object(Scheduler, "plan", autospec=True, side_effect=Scheduler.plan) as plans,
            mock.patch.object(Scheduler, "leap", autospec=True, side_effect=Scheduler.leap) as leaps,
        ):
            results = simulate(alone, COST, [ask(0.0, output=output)])
        assert (results.steps, results.output_tokens[0]) == (output, output)
        assert leaps.call_count == 1
        assert plans.call_count <= 4


def test_who_comes_meanwhile_is_heard_at_the_end_of_the_step_under_way() -> None:
    # Steps of 10 ms. The second comes in the 51st, and the step after it computes its prompt.
    results = simulate(CONFIG, COST, [ask(0.0, 50, 500), ask(0.505, 50, 1, first=1000)])
    assert results.ttfts[0] == pytest.approx(0.015)
