# SPDX-License-Identifier: Apache-2.0
"""The interpreter's own checks: kernels that are wrong in one way each, and the complaint that each must draw."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from pagedserve.backends.triton.interpreter import OutOfBounds, Race, Unsupported, interpret
from pagedserve.backends.triton.launch import Launch

pytestmark = pytest.mark.triton


@triton.jit
def copy(source, target, count, BLOCK: tl.constexpr, BOUND: tl.constexpr, FILLED: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count + BOUND
    values = tl.load(source + place, mask=mask, other=0.0) if FILLED else tl.load(source + place, mask=mask)
    tl.store(target + tl.program_id(0), tl.sum(values, 0))


def run_copy(count=13, *, bound=0, filled=True, source=None):
    source = torch.ones(count) if source is None else source
    target = torch.zeros(2)
    constants = {"BLOCK": 8, "BOUND": bound, "FILLED": filled}
    interpret([Launch(copy, (2,), {"source": source, "target": target, "count": len(source)}, constants)])
    return target


def test_a_right_kernel_runs():
    assert run_copy().tolist() == [8, 5]


def test_an_access_outside_the_tensor_is_told():
    with pytest.raises(OutOfBounds, match="program 1 touches 1 elements"):
        run_copy(bound=1)


def test_elements_between_rows_are_not_part_of_a_view():
    wide = torch.ones(26)
    assert run_copy(source=wide[:13]).tolist() == [8, 5]
    with pytest.raises(OutOfBounds):
        run_copy(source=wide[:13], bound=1)


def test_a_masked_load_without_other_gives_nan():
    assert run_copy(16, filled=False).tolist() == [8, 8]
    assert torch.isnan(run_copy(13, filled=False)[1])


@triton.jit
def hand_over(values, flag, result, SEMANTICS: tl.constexpr):
    """The last program to arrive adds what all stored."""
    me = tl.program_id(0)
    tl.store(values + me, (me + 1).to(tl.float32))
    if tl.atomic_add(flag, 1, sem=SEMANTICS) == tl.num_programs(0) - 1:
        tl.store(result, tl.sum(tl.load(values + tl.arange(0, 4)), 0))


@pytest.mark.parametrize("order", [None, 0, 1])
@pytest.mark.parametrize("semantics", ["acq_rel", "relaxed", "acquire", "release"])
def test_only_an_atomic_that_acquires_and_releases_orders_programs(semantics, order):
    values, flag, result = torch.zeros(4), torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    launch = Launch(hand_over, (4,), {"values": values, "flag": flag, "result": result}, {"SEMANTICS": semantics})
    if semantics == "acq_rel":
        interpret([launch], order=order)
        assert result.item() == 10
    else:
        with pytest.raises(Race, match="nothing that orders them"):
            interpret([launch], order=order)


@triton.jit
def write_one_place(target):
    tl.store(target, tl.program_id(0))


def test_two_programs_may_not_write_one_element():
    with pytest.raises(Race, match="wrote"):
        interpret([Launch(write_one_place, (2,), {"target": torch.zeros(1, dtype=torch.int32)}, {})])


@triton.jit
def shift(x):
    place = tl.program_id(0)
    tl.store(x + place + 1, tl.load(x + place))


def test_a_write_of_what_another_program_reads_is_a_race_in_any_order():
    for order in (None, 0, 1, 2):
        with pytest.raises(Race):
            interpret([Launch(shift, (3,), {"x": torch.zeros(4)}, {})], order=order)


@triton.jit
def low_precision(x, out, WAY: tl.constexpr):
    place = tl.arange(0, 8)
    a = tl.load(x + place)
    if WAY == "add":
        tl.store(out + place, a + a)
    elif WAY == "exp":
        tl.store(out + place, tl.exp(a))
    elif WAY == "sum":
        tl.store(out, tl.sum(a, 0))
    elif WAY == "compare":
        tl.store(out + place, a, mask=a > a)
    else:
        wide = a.to(tl.float32)
        tl.store(out + place, (wide + wide).to(tl.bfloat16))


@pytest.mark.parametrize("way", ["add", "exp", "sum", "compare"])
def test_arithmetic_on_bfloat16_is_refused(way):
    x = torch.ones(8, dtype=torch.bfloat16)
    with pytest.raises((Unsupported, ValueError)):
        interpret([Launch(low_precision, (1,), {"x": x, "out": torch.zeros_like(x)}, {"WAY": way})])


def test_arithmetic_on_widened_bfloat16_rounds_once():
    x = torch.randn(8).bfloat16()
    out = torch.zeros_like(x)
    interpret([Launch(low_precision, (1,), {"x": x, "out": out}, {"WAY": "wide"})])
    assert torch.equal(out, (x.float() * 2).bfloat16())


@triton.jit
def product(a, b, out, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = row * SIZE + column
    tl.store(out + place, tl.dot(tl.load(a + place), tl.load(b + place)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_low_precision_matrices_are_exact(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    out = torch.zeros(16, 16)
    interpret([Launch(product, (1,), {"a": a, "b": b, "out": out}, {"SIZE": 16})])
    torch.testing.assert_close(out, a.float() @ b.float())


def test_programs_run_in_the_order_that_is_asked_for():
    @triton.jit
    def number(counter, place):
        tl.store(place + tl.program_id(0), tl.atomic_add(counter, 1))

    seen = []
    for order in (None, 0, 1):
        counter, place = torch.zeros(1, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
        interpret([Launch(number, (6,), {"counter": counter, "place": place}, {})], order=order)
        seen.append(place.tolist())
    assert seen[0] == list(range(6))
    assert len({tuple(order) for order in seen}) == 3
