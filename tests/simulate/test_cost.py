# SPDX-License-Identifier: Apache-2.0
"""Step costs: the formula, the roofline behind it, and where its numbers are from."""

from __future__ import annotations

import math

import pytest
from sim_parts import CONFIG

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepShape
from pagedserve.scheduling.events import Arrive, StepDone
from pagedserve.scheduling.scheduler import Scheduler
from pagedserve.simulate import hardware
from pagedserve.simulate.cost import StepCurve, hat_weights
from pagedserve.simulate.pace import steps_ms


def test_a_plan_knows_its_shape():
    scheduler = Scheduler(CONFIG)
    scheduler.apply(Arrive(0.0, "a", range(3), 5))
    plan = scheduler.plan(0.0)
    assert plan.shape == StepShape(num_tokens=3, num_seqs=1, context=0, pairs=6)
    scheduler.apply(StepDone(0.0, plan.step, [7]))
    scheduler.apply(Arrive(0.0, "b", range(1000, 1700), 5))
    # a attends to 4 tokens; b's chunk fills the step.
    pairs = 511 * 512 // 2
    assert scheduler.plan(0.0).shape == StepShape(num_tokens=512, num_seqs=2, context=4, pairs=pairs)


@pytest.mark.parametrize("tokens, ms", [(1, 2.0), (10, 2.0), (15, 3.0), (20, 4.0), (30, 10.0), (40, 16.0)])
def test_the_curve_is_straight_between_knots_and_goes_on(tokens, ms):
    knots = [(10, 2.0), (20, 4.0), (30, 10.0)]
    curve = StepCurve(knots)
    for _ in range(2):  # the second is remembered
        assert curve.ms(StepShape(tokens, 1, 0, 0)) == pytest.approx(ms)
    weights = hat_weights(tokens, [t for t, _ in knots])
    assert sum(weights) == pytest.approx(1)
    assert sum(weight * at for weight, (_, at) in zip(weights, knots, strict=True)) == pytest.approx(ms)


@pytest.mark.parametrize("knots", [[], [(1, -1.0)], [(1, math.nan)], [(2, 1.0), (2, 2.0)], [(3, 1.0), (2, 2.0)]])
def test_a_curve_that_cannot_be_is_refused(knots):
    with pytest.raises(InvalidInput):
        StepCurve(knots)


def test_published_sizes_come_out():
    model = hardware.find_model("llama-3-8b")
    assert model.weight_bytes == pytest.approx(2 * 8.03e9, rel=0.001)
    assert model.kv_token_bytes == 131_072
    assert hardware.find_model("llama-3-70b").weight_bytes == pytest.approx(2 * 70.55e9, rel=0.001)
    # bench/NOTES.md counts the same model by hand.
    small = hardware.find_model("smollm2-135m")
    assert small.matrix_weights + small.head_weights == 134_479_872


def test_a_roofline_reads_the_weights_then_multiplies():
    gpu = hardware.find_gpu("h200")
    machine = hardware.roofline(hardware.find_model("llama-3-8b"), gpu)

    def step_s(tokens, num_seqs=0, context=0):
        return machine.cost.ms(StepShape(tokens, num_seqs, context, 0)) / 1e3

    # No faster than the data sheet allows, and not by more than the shares that are assumed.
    floor = 2 * 7.5e9 / gpu.bytes_per_s
    assert floor < step_s(1, 1) < floor / hardware.BYTES_SHARE + 2e-3
    assert step_s(1) == step_s(64)
    flops = 2 * 6.98e9 * 8192 / gpu.flops_per_s
    assert flops < step_s(8192) < flops / hardware.FLOPS_SHARE + 2e-3
    reads = 131_072 * 1e6 / gpu.bytes_per_s
    assert step_s(64, 64, 1_000_000) - step_s(64, 64) == pytest.approx(reads / hardware.BYTES_SHARE)
    pages_bytes = machine.num_pages * machine.page_size * 131_072
    assert 0.7 < pages_bytes / gpu.memory_bytes < 0.9


def test_every_number_says_where_it_is_from():
    machine = hardware.roofline(hardware.find_model("llama-3-70b", "fp8"), hardware.find_gpu("h200"))
    assert {constant.kind for constant in machine.constants} == {"datasheet", "model", "assumed"}
    assert all(constant.source and math.isfinite(constant.value) for constant in machine.constants)


def test_a_model_that_does_not_fit_says_by_how_much():
    with pytest.raises(InvalidInput, match=r"141\.1 GB of weights.*fp8"):
        hardware.roofline(hardware.find_model("llama-3-70b"), hardware.find_gpu("h200"))


@pytest.mark.parametrize(
    "find, says",
    [
        (lambda: hardware.find_gpu("h900"), "supported: b200, h200"),
        (lambda: hardware.find_model("gpt-9"), "supported: llama-3-8b"),
        (lambda: hardware.find_model("llama-3-8b", "int1"), "supported: bf16, fp8"),
    ],
)
def test_unknown_names_list_the_known(find, says):
    with pytest.raises(InvalidInput, match=says):
        find()


@pytest.mark.parametrize("num_seqs", [1, 7, 200])
def test_decodes_one_after_the_other_cost_what_each_costs(num_seqs):
    law = StepCurve([(1, 5.9), (30, 6.3), (400, 31.7)], context_ms=3.3e-5, pair_ms=1e-6, seq_ms=2.7e-3)
    first = StepShape(num_seqs, num_seqs, 777 * num_seqs, 0)
    assert steps_ms(law, first, 60, 0.0) == [law.ms(first.later(steps)) for steps in range(60)]
    assert first.later(60).context == 837 * num_seqs
