# SPDX-License-Identifier: Apache-2.0
"""The simulator beside a real engine: what is compared, on a simulated real one."""

from __future__ import annotations

import dataclasses

import pytest

from bench import fidelity
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.calibrate import MeasuredStep, fit
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
    slow = StepCurve([(tokens, 1.1 * ms) for tokens, ms in COST.knots])
    real, guess = fidelity.simulated(CONFIG, COST, calls), fidelity.simulated(CONFIG, slow, calls)
    rows = {row["metric"]: row for row in fidelity.compared("steady", real, guess, real, 0.0)}
    assert {"TTFT p99, ms", "TPOT mean, ms", "E2E mean, ms", "until all are answered, s"} <= rows.keys()
    assert rows["TPOT p50, ms"]["error_percent"] > 5
    assert {row["self_error_percent"] for row in rows.values()} == {0.0}


def test_calibration_meets_batches_of_every_size():
    groups = fidelity.calibration(1000, 1, fidelity.GROUPS)
    assert [len(group) for group in groups] == list(fidelity.GROUPS)
    numbers = [call.number for group in groups for call in group]
    assert numbers == list(range(len(numbers)))


def test_drift_is_how_much_slower_the_machine_became():
    shapes = [StepShape(tokens, 1, 100, 0) for tokens in range(1, 200)]
    before = [MeasuredStep(0.0, shape, COST.ms(shape), COST.ms(shape)) for shape in shapes]
    after = [dataclasses.replace(step, period_ms=1.1 * step.period_ms) for step in before]
    assert fidelity.drift(before, after, fit(before + after)) == pytest.approx(0.1, rel=0.01)
