# SPDX-License-Identifier: Apache-2.0
"""The simulator's bench: rows, and its verdict."""

from __future__ import annotations

from bench import simulator
from pagedserve.simulate import hardware
from pagedserve.simulate.capacity import Planner, Traffic
from pagedserve.simulate.workload import Slo, steady

MACHINE = hardware.roofline(hardware.find_model("llama-3-8b"), hardware.find_gpu("l40s"))
TRAFFIC = Traffic(100, 60.0, Slo(2.0, 0.2), prompt_mean=400.0, output_mean=20.0)


def test_a_day_is_simulated_to_its_end_and_tells_how_far_it_is():
    told = []
    row = simulator.day(60, MACHINE, TRAFFIC, told.append)
    assert 30 < row["requests"] < 100
    assert row["kept_percent"] == 100.0
    assert told == [0]


def test_a_load_is_set_beside_its_oracle():
    row = simulator.beside_oracle("crowd", steady(60.0, 1.0), MACHINE, Planner(MACHINE, TRAFFIC))
    assert 0 < row["unbounded_percent"] <= row["kept_percent"] <= 100
    assert row["kept_percent"] > row["oracle_percent"] - 3
