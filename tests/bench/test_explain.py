# SPDX-License-Identifier: Apache-2.0
"""explain: its arithmetic by hand, its counts on machine code that is known, its plan against the lengths."""

from collections import Counter

import pytest
from rich.console import Console

from bench.__main__ import parser
from bench.explain import BARS, code, explained, run, shape_of
from bench.explain.predict import CARDS, LAUNCH_S, TRIP_S, TRIPS, Plan, Shape, planned, predict, streaming_share
from bench.sass import tool
from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.specs.plan_layout import GROUP_SPLITS, SPLIT_TOKENS

H200 = CARDS["h200"]
SIZES = code.Sizes(128, 2, 16, 64, 4, 256, 70_000, 8)
WORK = code.Work({"keys": Counter(matrix=8, integer=92), "copies": Counter(copies=100)}, 400, 300, 250)
SHAPE = Shape(32, 8, 128, 16, (32768,), "bf16")


def test_bytes_count_scales():
    assert SHAPE.kv_bytes == 32768 * 8 * 2 * 256
    assert shape_of("64/8", "128x2048", "fp8", 128, 16).kv_bytes == 128 * 2048 * 8 * 2 * (128 + 4)
    assert shape_of("8/1", "131072,31x4096", "int4", 128, 16).kv_bytes == (131072 + 31 * 4096) * 2 * (64 + 4)


def test_a_prediction_by_hand():
    plan = Plan((640,) * 264, 264)  # two blocks on each of 132 SMs
    found = predict(SHAPE, H200, SIZES, WORK, 160, 3, plan, 43e-6)
    sm_rate = 4.8e12 / 132 / 1.98e9  # bytes a clock
    assert found.floor_s == pytest.approx(SHAPE.kv_bytes / 4.8e12)
    assert found.issue_share == pytest.approx((200 + 400 / 4) / (64 * 512 / sm_rate))
    assert found.in_flight_share == pytest.approx(2 * 2 * 64 * 512 / (0.8e-6 * 4.8e12 / 132))
    assert found.balance == 1
    assert found.fixed_s == pytest.approx(LAUNCH_S + len(TRIPS) * TRIP_S + (200 + 400) / 1.98e9)
    assert found.bound == "memory"
    assert found.predicted_s == pytest.approx(found.fixed_s + SHAPE.kv_bytes / (4.8e12 * streaming_share()))
    assert found.needed_share == pytest.approx(found.floor_s / (43e-6 - found.fixed_s))


def test_streaming_is_the_slope_of_what_is_published():
    """1074 MB in 253.2 us less 537 MB in 132.6 us; between 4K and 16K tokens it is the same within 1 %."""
    assert 4.8 * streaming_share() == pytest.approx((1073.74 - 536.87) / (253.24 - 132.56), rel=1e-3)
    assert 4.8 * streaming_share() == pytest.approx((536.87 - 134.22) / (132.56 - 41.55), rel=1e-2)


def test_what_binds_is_named():
    slow = code.Work({"keys": Counter(integer=9000)}, 0, 0, 0)
    plan = Plan((640,) * 396, 396)
    assert predict(SHAPE, H200, SIZES, slow, 160, 3, plan, None).bound == "instructions"
    one = Plan((262144, *[0] * 395), 1)
    found = predict(SHAPE, H200, SIZES, WORK, 160, 3, one, None)
    assert (found.bound, found.balance) == ("latency of the busiest SM", pytest.approx(1 / 132))


def test_two_merges_by_hand():
    """16 partials of a group, then 40 groups: 4 rows on 4 warps, 8 partials a trip, 64 bytes a clock."""
    merged = predict(SHAPE, H200, SIZES, WORK, 160, 3, Plan((640,) * 396, 396, 0, 16, 40), None)
    batch = 0.3e-6 + 8 * 4 * 4 * 130 / 64 / 1.98e9
    instructions = (300 + 2 * 250) + (2 * 300 + 5 * 250)
    assert merged.merge_s == pytest.approx(4 * 0.3e-6 + 7 * batch + instructions / 1.98e9)


def test_every_number_says_where_it_is_from():
    facts = predict(SHAPE, H200, SIZES, WORK, 160, 3, Plan((640,) * 396, 396), None).facts
    origins = ("data sheet", "counted", "planner", "arithmetic", "derived", "assumed")
    assert all(fact.origin.startswith(origins) for fact in facts)


@pytest.mark.parametrize(
    "heads, kv_lens", [("32/8", "8x700"), ("8/1", "20000,31x300"), ("32/8", "0,5"), ("4/4", "1024")]
)
def test_the_plan_holds_every_token(heads, kv_lens):
    shape = shape_of(heads, kv_lens, "bf16", 128, 16)
    plan = planned(shape, 132)
    assert sum(plan.block_tokens) == sum(plan.of_sms(132)) == sum(shape.kv_lens) * shape.num_kv_heads
    assert (plan.most_partials > 0) == (plan.partial_bytes > 0)
    assert plan.most_partials <= GROUP_SPLITS
    assert plan.most_groups in (0, -(-max(shape.kv_lens) // (SPLIT_TOKENS * GROUP_SPLITS)))


def line(address: int, text: str, *functions: str) -> code.Line:
    return code.Line(address, text, (*functions, "attend_split"))


KERNEL = [
    line(0, "IADD3 R1, R1, 0x1, RZ", "add_warps"),
    line(16, "LDSM.16.M88.4 R4, [R2]", "load_keys", "multiply_keys"),
    *[line(32 + 16 * i, "HMMA.16816.F32.BF16 R8, R4, R6, R8", "multiply_keys") for i in range(8)],
    line(160, "@P0 FMUL R1, R1, R2", "mask_logits"),
    line(176, "@!P1 MUFU.EX2 R1, R1", "weigh"),
    *[line(192 + 16 * i, "HMMA.16816.F32.BF16 R8, R4, R6, R8", "add_values") for i in range(8)],
    line(320, "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "copy_rows", "bring"),
    line(336, "@P0 BRA 0x10", "bring_next"),
    line(352, "BAR.SYNC.DEFER_BLOCKING 0x0", "add_warps"),
    line(368, "FFMA R1, R1, R2, R3", "fold_column", "add_warps"),
    line(384, "@P0 BRA 0x0", "run_task"),
    line(400, "MUFU.EX2 R1, R1", "merge_partials"),
    line(416, "FFMA R1, R1, R2, R3", "fold", "merge_partials"),
    line(432, "@P0 BRA 0x1a0", "merge_partials"),
    line(448, "@P0 BRA 0x190", "merge_partials"),
]


def test_instructions_are_counted_by_phase():
    work = code.work_of(KERNEL, SIZES, 128, 8, num_rows=8)
    assert work.tile["keys"] == {"matrix loads": 1, "matrix": 8}
    assert work.tile["softmax"] == {"exponent": 1}  # a mask is rare
    assert work.tile["copies"] == {"copies": 1, "control": 1}
    assert work.split == 2 + 2  # a warp folds two of eight columns
    assert (work.merge_row, work.merge_batch) == (2, 2)
    assert work.tile_slots(4) == 9 + 1 + 8 + 2 + 1


def test_a_loop_without_enough_products_is_refused():
    with pytest.raises(ValueError, match="7 matrix products of keys"):
        code.work_of([*KERNEL[:2], *KERNEL[3:]], SIZES, 128, 8, 8)
    with pytest.raises(ValueError, match="no loop"):
        code.work_of(KERNEL[:9], SIZES, 128, 8, 8)


def test_a_kernel_of_the_tree_is_counted():
    try:
        tool("nvcc"), tool("cuobjdump"), tool("nvdisasm")
        found, work = explained(SHAPE, H200)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert work.tile["keys"]["matrix"] == 8  # 16 tokens of 128 elements
    assert work.tile["copies"]["copies"] == 16  # 8 KiB of a warp, 16 bytes a lane
    assert 0 < work.merge_slots(16, 8) < 2000
    assert found.in_flight_share > 2, "two blocks with two stages are not enough"
    assert found.issue_share < 0.5, "half of the time that a tile's bytes take goes into instructions"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--heads", "7/2"], "the first a multiple"),
        (["--heads", "32/32"], "32/32 of bf16 runs on CUDA cores"),
        (["--kv-lens", "8y3"], "no whole number"),
        (["--dtype", "f64"], "choose from bf16"),
        (["--gpu", "g1"], "choose from h200"),
        (["--head-dim", "12"], "a multiple of 8"),
    ],
)
def test_a_call_that_cannot_be_is_refused(words, said):
    args = parser().parse_args(["explain", "paged_decode", *words])
    console = Console(record=True, width=200)
    assert run(args, console) == 2
    assert said in console.export_text()


def test_bars_are_shapes():
    for heads, kv_lens, kv, _ in BARS:
        try:
            assert shape_of(heads, kv_lens, kv, 128, 16).kv_bytes > 0
        except InvalidInput as error:
            pytest.fail(str(error))
