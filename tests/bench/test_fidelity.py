# SPDX-License-Identifier: Apache-2.0
"""The simulator beside a real engine: what is compared, on a simulated real one."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bench import fidelity, fidelity_runs
from pagedserve.errors import PagedServeError
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.calibrate import MeasuredStep
from pagedserve.simulate.cost import StepCurve

CONFIG = SchedulerConfig(num_pages=4096, page_size=16, max_seqs=32, max_step_tokens=256, max_model_len=2048)
COST = StepCurve([(1, 5.0), (256, 100.0)])


@pytest.mark.parametrize("workload", fidelity.WORKLOADS, ids=lambda workload: workload.name)
def test_workloads_are_drawn_by_seed_and_fit_the_engine(workload):
    capacity = fidelity.capacity_of(CONFIG, COST)
    profile, calls = fidelity.calls_of(workload, capacity, 20.0, 1000, 3)
    assert len(calls) > 20
    assert max(call.due_s for call in calls) <= profile.duration_s
    assert all(0 < len(call.prompt) + call.max_tokens <= 2048 for call in calls)
    assert calls == fidelity.calls_of(workload, capacity, 20.0, 1000, 3)[1]
    simulated = fidelity.simulated(CONFIG, COST, calls)
    assert simulated.summary().served == len(calls)


def test_errors_are_of_the_simulated_over_the_real():
    _, calls = fidelity.calls_of(fidelity.WORKLOADS[0], 10.0, 10.0, 1000, 1)
    costs = [StepCurve([(tokens, factor * ms) for tokens, ms in COST.knots]) for factor in (1.0, 0.9, 1.2, 1.3)]
    real, fast, slow, slower = (fidelity.simulated(CONFIG, cost, calls) for cost in costs)
    rows = fidelity.compared("steady", [slow, real, fast], [slower], [fast], [slow, real, fast], 0.0)
    rows = {row["metric"]: row for row in rows}
    assert {"TTFT p99, ms", "TPOT mean, ms", "E2E mean, ms", "until all are answered, s"} <= rows.keys()
    assert {row["self_error_percent"] for row in rows.values()} == {0.0}
    tpot = rows["TPOT p50, ms"]
    assert tpot["paced_error_percent"] < -5
    assert tpot["real"] == fidelity.figures(real)["TPOT p50, ms"]
    assert tpot["error_percent"] > tpot["worst_run_percent"] > tpot["runs_off_percent"] > 5


def test_a_calibration_climbs_to_batches_of_every_size():
    climbs = fidelity_runs.climbs(1000, 1)
    assert [len(climb) for climb in climbs] == list(fidelity_runs.TOPS)
    calls = [call for climb in climbs for call, _ in climb]
    assert [call.number for call in calls] == list(range(len(calls)))
    assert all(len(call.prompt) + call.max_tokens <= fidelity_runs.MAX_MODEL_LEN for call in calls)
    for climb in climbs:  # each is there until the last has come
        after = [sum(lead for _, lead in climb[place:]) for place in range(len(climb))]
        assert all(call.max_tokens >= tokens for (call, _), tokens in zip(climb, after, strict=True))


def disturbed(*shares):
    left = iter(shares)
    return lambda: fidelity_runs.Run(CONFIG, [], 0.0, None, next(left))


def test_a_disturbed_run_does_not_count(monkeypatch):
    monkeypatch.setattr(fidelity, "await_quiet", lambda: None)
    assert fidelity.undisturbed(disturbed(0.5, 0.4, 0.01, 0.0), 3).others_share == 0.01
    assert math.isnan(fidelity.undisturbed(disturbed(math.nan), 3).others_share)  # where nobody counts it
    with pytest.raises(PagedServeError, match="40% of the processors in the last of 2 runs"):
        fidelity.undisturbed(disturbed(0.5, 0.4, 0.0), 2)


def test_runs_are_simulated_at_the_pace_they_had():
    shapes = [StepShape(tokens, 1, 100, 0) for tokens in range(1, 257)] * 2
    steps = [MeasuredStep(0.0, shape, COST.ms(shape), COST.ms(shape)) for shape in shapes]
    slower = [dataclasses.replace(step, period_ms=1.1 * step.period_ms) for step in steps]
    before, after = (fidelity_runs.Run(CONFIG, each, 0.0, None, 0.0) for each in (steps, slower))
    [pace] = fidelity.paces_of([after], [before])
    assert pace == pytest.approx(1.1, rel=1e-3)
    _, calls = fidelity.calls_of(fidelity.WORKLOADS[0], 10.0, 5.0, 1000, 1)
    paced, own = fidelity.draws([before], calls, [pace]), fidelity.draws([after], calls)
    assert paced[0].end_s == pytest.approx(own[0].end_s, rel=1e-3)
