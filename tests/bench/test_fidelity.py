# SPDX-License-Identifier: Apache-2.0
"""The simulator beside a real engine: what is compared, on a simulated real one."""

from __future__ import annotations

import pytest

from bench import fidelity, fidelity_runs
from pagedserve.scheduling.config import SchedulerConfig
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
    rows = fidelity.compared("steady", [slow, real, fast], [slower], [slow, real, fast], 0.0)
    rows = {row["metric"]: row for row in rows}
    assert {"TTFT p99, ms", "TPOT mean, ms", "E2E mean, ms", "until all are answered, s"} <= rows.keys()
    assert {row["self_error_percent"] for row in rows.values()} == {0.0}
    tpot = rows["TPOT p50, ms"]
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


@pytest.mark.parametrize("shares, counted, made", [([0.01, 0.0], 0.01, 1), ([0.5, 0.4, 0.6, 0.0], 0.4, 3)])
def test_a_disturbed_run_is_run_again(shares, counted, made):
    left = iter(shares)
    runs = []

    def run() -> fidelity_runs.Run:
        runs.append(fidelity_runs.Run(CONFIG, [], 0.0, None, next(left)))
        return runs[-1]

    assert fidelity._undisturbed(run, 3).others_share == counted
    assert len(runs) == made
