# SPDX-License-Identifier: Apache-2.0
"""The simulator beside a real engine: what is compared, on a simulated real one."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest

from bench import fidelity, fidelity_runs
from pagedserve.errors import PagedServeError
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.simulate.calibrate import MeasuredStep, fit
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.pace import Paced

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
    level, fast, slow, slower = (fidelity.figures(fidelity.simulated(CONFIG, cost, calls)) for cost in costs)
    runs = [slow, level, fast]
    rows = fidelity.compared("steady", runs, [[slower]] * 3, [[run] for run in runs])
    rows = {row["metric"]: row for row in rows}
    assert {"TTFT p99, ms", "TPOT mean, ms", "E2E mean, ms", "until all are answered, s"} <= rows.keys()
    assert {row["self_error_percent"] for row in rows.values()} == {0.0}
    tpot = rows["TPOT p50, ms"]
    mean = statistics.fmean(run["TPOT p50, ms"] for run in runs)
    assert (tpot["real"], tpot["simulated"]) == pytest.approx((mean, slower["TPOT p50, ms"]))
    assert tpot["error_percent"] == pytest.approx(100 * (slower["TPOT p50, ms"] / mean - 1))
    assert tpot["worst_run_percent"] > tpot["runs_off_percent"] > 5
    assert 5 < tpot["unsure_percent"] < 60  # of three runs that differ by as much


def test_a_calibration_has_crowds_of_all_sizes():
    crowds = fidelity_runs.crowds(1000, 1)
    assert sorted((len(crowd), len(crowd[0])) for crowd in crowds) == sorted(fidelity_runs.CROWDS)
    asked = [one for crowd in crowds for user in crowd for one in user]
    assert [call.number for _, call in asked] == list(range(len(asked)))
    assert all(len(call.prompt) + call.max_tokens <= fidelity_runs.MAX_MODEL_LEN for _, call in asked)
    lengths = sorted(len(call.prompt) for _, call in asked)
    assert lengths[0] < 40 < lengths[len(lengths) // 2] < 300 < lengths[-1]
    assert all(0 <= pause_s <= fidelity_runs.MOST_PAUSE_S for pause_s, _ in asked)
    assert crowds == fidelity_runs.crowds(1000, 1) != fidelity_runs.crowds(1000, 2)


def disturbed(*shares):
    left = iter(shares)
    return lambda: (fidelity_runs.Run(CONFIG, [], 0.0, 0.0, None, next(left)),)


def test_a_disturbed_run_does_not_count(monkeypatch):
    monkeypatch.setattr(fidelity, "await_quiet", lambda: None)
    assert fidelity.undisturbed(disturbed(0.5, 0.4, 0.01, 0.0), 3)[0].others_share == 0.01
    assert math.isnan(fidelity.undisturbed(disturbed(math.nan), 3)[0].others_share)  # where nobody counts it
    with pytest.raises(PagedServeError, match="40% of the processors in the last of 2 runs"):
        fidelity.undisturbed(disturbed(0.5, 0.4, 0.0), 2)


def all_shapes():
    clock = random.Random(0)
    drawn = [[clock.randrange(1, most) for most in (257, 32, 9000, 9000)] for _ in range(1000)]
    return [StepShape(tokens, min(seqs, tokens), context, pairs) for tokens, seqs, context, pairs in drawn]


def rows_by_metric(measured):
    calibrations = [one.beside for one in measured]
    fitted = fit(fidelity.levelled(calibrations))
    return {row["metric"]: row for row in fidelity.rows_of("steady", measured, calibrations, fitted)}


def test_each_run_is_simulated_at_the_pace_of_the_calibration_beside_it():
    shapes = all_shapes()
    _, calls = fidelity.calls_of(fidelity.WORKLOADS[0], 10.0, 5.0, 1000, 1)
    measured = []
    for pace in (0.9, 1.0, 1.2):
        steps = [MeasuredStep(0.0, shape, pace * COST.ms(shape), pace * COST.ms(shape)) for shape in shapes]
        cost = StepCurve([(tokens, pace * ms) for tokens, ms in COST.knots])
        run = fidelity_runs.Run(CONFIG, steps, 0.0, 0.0, fidelity.simulated(CONFIG, cost, calls), 0.01)
        measured.append(fidelity.Measured(run, dataclasses.replace(run, results=None), calls))
    calibrations = [one.beside for one in measured]
    assert fidelity.paces_of(calibrations, calibrations) == pytest.approx([2.7 / 3.1, 3 / 3.1, 3.6 / 3.1], rel=1e-3)
    rows = rows_by_metric(measured)
    assert rows["E2E mean, ms"]["machine_off_percent"] == pytest.approx(100 * 0.15 * 3 / 3.1, rel=1e-3)
    assert max(abs(row["error_percent"]) for row in rows.values()) < 0.5
    assert rows["E2E mean, ms"]["worst_run_percent"] > 10


def test_a_slow_spell_is_simulated_when_it_was():
    """Three seconds in which steps take 2.5 times as long, seen by a run and by the calibration beside it."""
    _, calls = fidelity.calls_of(fidelity.WORKLOADS[0], 10.0, 10.0, 1000, 1)
    shapes, measured = all_shapes(), []
    for begin in (4.0, 8.0):
        steps, t = [], 0.0
        for shape in shapes:
            ms = COST.ms(shape) * (2.5 if begin <= t < begin + 3.0 else 1.0)
            if len(steps) == 20:  # a calibration pauses, and its clock goes on
                t += 2.5
            steps.append(MeasuredStep(100.0 + t, shape, ms, ms))
            t += ms / 1e3
        taken = [(step.shape, step.period_ms) for step in steps]
        law = Paced(COST, [*taken[:20], (None, 2500.0), *taken[20:]])
        run = fidelity_runs.Run(CONFIG, steps, 100.0, 0.0, fidelity.simulated(CONFIG, law, calls), 0.01)
        measured.append(fidelity.Measured(run, dataclasses.replace(run, results=None), calls))
    rows = rows_by_metric(measured)
    error, anywhere = (abs(rows["E2E mean, ms"][name]) for name in ("error_percent", "self_error_percent"))
    assert error < 4  # 20, were the pause left out
    assert anywhere > 2 * error  # begun anywhere, another crowd meets the spell
