# SPDX-License-Identifier: Apache-2.0
"""Step costs: the formula, the roofline behind it, and where its numbers are from."""

from __future__ import annotations

import math

import pytest
from sim_parts import CONFIG

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.cost import StepPrices, StepShape
from pagedserve.scheduling.events import Arrive, StepDone
from pagedserve.scheduling.scheduler import Scheduler
from pagedserve.simulate import hardware
from pagedserve.simulate.cost import SETTLED, Behind, StepCurve, hat_weights, step_ms, steps_in_a_row
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


def test_what_stands_beside_a_prompt_may_cost_another_amount():
    own = {"context_ms": 0.01, "seq_ms": 0.5, "pair_ms": 0.001}
    decodes, mixed = StepShape(4, 4, 300, 0), StepShape(40, 4, 300, 1000)
    alike = StepCurve([(1, 5.0)], **own)
    assert (alike.ms(decodes), alike.ms(mixed)) == pytest.approx((5.0 + 3.0 + 2.0, 5.0 + 3.0 + 2.0 + 1.0))
    law = StepCurve([(1, 5.0)], **own, mixed_context_ms=0.0, mixed_seq_ms=0.25)
    assert (law.ms(decodes), law.ms(mixed)) == pytest.approx((10.0, 5.0 + 1.0 + 1.0))
    with pytest.raises(InvalidInput, match="mixed_seq_ms=-1"):
        StepCurve([(1, 5.0)], mixed_seq_ms=-1.0)


def test_decodes_whose_batch_is_new_cost_more():
    law = StepCurve([(1, 5.0), (100, 50.0)], settle_ms=2.0, change_ms=0.5)
    prompt, three, two = StepShape(50, 4, 90, 1000), StepShape(3, 3, 90, 0), StepShape(2, 2, 60, 0)
    shapes = [three, prompt, three, three, three, *[two] * 40, prompt, prompt, two]
    more = [ms - law.ms(shape) for ms, shape in zip(steps_in_a_row(law, shapes), shapes, strict=True)]
    assert more[:5] == pytest.approx([0.0, 0.0, 2.0, 1.2, 0.72])  # whoever came is not counted twice
    assert more[5:7] == pytest.approx([0.5 + 2.0 * 0.6**3, 2.0 * 0.6**4])
    assert more[44] == 0.0
    assert more[45:] == pytest.approx([0.0, 0.0, 2.0])  # prompts are as measured among others
    assert list(steps_in_a_row(StepPrices(), shapes)) == [StepPrices().ms(shape) for shape in shapes]
    with pytest.raises(InvalidInput, match="at least 0 ms"):
        StepCurve([(1, 5.0)], settle_ms=-1.0)


@pytest.mark.parametrize("behind", [SETTLED, Behind(1, 9), Behind(3, 7), Behind(23, 9), Behind(1000, 9)])
@pytest.mark.parametrize("num_seqs", [1, 7, 200])
def test_decodes_one_after_the_other_cost_what_each_costs(num_seqs, behind):
    own = {"context_ms": 3.3e-5, "pair_ms": 1e-6, "seq_ms": 2.7e-3, "settle_ms": 1.7, "change_ms": 0.3}
    own |= {"mixed_context_ms": 1e-5, "mixed_seq_ms": 0.4}
    law = StepCurve([(1, 5.9), (30, 6.3), (400, 31.7)], **own)
    first = StepShape(num_seqs, num_seqs, 777 * num_seqs, 0)
    singly, place = [], behind
    for steps in range(60):
        singly.append(step_ms(law, first.later(steps), place))
        place = place.after(first)
    assert steps_ms(law, first, 60, 0.0, behind) == singly
    assert place == behind.after(first, 60)
    assert first.later(60).context == 837 * num_seqs
