# SPDX-License-Identifier: Apache-2.0
"""The comparison itself: backends that are wrong in a known way must be caught."""

from dataclasses import replace

import pytest
import torch

from pagedserve.backends.reference import attention, cache, fused, linear
from pagedserve.ops import registry
from pagedserve.ops.agreement import code_order, difference, error_beyond_budget
from pagedserve.ops.cases import make_inputs
from pagedserve.ops.registry import Row
from pagedserve.specs import SPECS
from tests.ops.agreement import check_backend


def one_key_more(*arguments):
    arguments = list(arguments)
    arguments[4] = torch.where(arguments[4] > 0, arguments[4] + 1, 0)
    attention.paged_decode(*arguments)


def ignores_the_window(*arguments):
    attention.paged_decode(*arguments[:15], 0, arguments[16])


def lse_without_sinks(*arguments):
    attention.paged_decode(*arguments)
    if arguments[6] is not None:
        arguments[11].sub_(0.01)


def empty_rows_untouched(*arguments):
    kept = arguments[10].clone().fill_(1.0)
    attention.paged_decode(*arguments)
    empty = (arguments[4] <= 0).repeat_interleave(arguments[13])
    arguments[10][empty] = kept[empty]


def norm_in_low_precision(x, weight, residual, out, eps, accumulate):
    fused.rms_norm(x.bfloat16().to(x.dtype), weight, residual, out, eps, accumulate)


def residual_forgotten(x, weight, residual, out, eps, accumulate):
    fused.rms_norm(x, weight, None if residual is None else residual.clone(), out, eps, accumulate)


def skipped_tokens_are_written(k, v, k_pages, v_pages, slots, k_scales, v_scales):
    free = min(set(range(k_pages.shape[0] * k_pages.shape[1])) - set(slots.tolist()))
    cache.append_kv(k, v, k_pages, v_pages, torch.where(slots < 0, free, slots), k_scales, v_scales)


def keys_unnormed(*arguments):
    cache.rope_append_kv(*arguments[:9], None, *arguments[10:])


def queries_of_skipped_tokens_left(*arguments):
    kept, slots = arguments[0].clone(), arguments[7]
    cache.rope_append_kv(*arguments)
    arguments[0][slots < 0] = kept[slots < 0]


def linear_of_exact_input(x, weight, bias, out, accumulate):
    product = x @ weight.dense().to(x.dtype).T + (0 if bias is None else bias)
    out.copy_(out + product if accumulate else product)


def one_row_off(x, rows, out):
    linear.take_rows(x, (rows + 1) % len(x), out)


WRONG = [
    ("paged_decode", one_key_more),
    ("paged_decode", ignores_the_window),
    ("paged_decode", lse_without_sinks),
    ("paged_decode", empty_rows_untouched),
    ("rms_norm", norm_in_low_precision),
    ("rms_norm", residual_forgotten),
    ("append_kv", skipped_tokens_are_written),
    ("rope_append_kv", keys_unnormed),
    ("rope_append_kv", queries_of_skipped_tokens_left),
    ("linear", linear_of_exact_input),
    ("take_rows", one_row_off),
]


@pytest.fixture
def wrong_backend(monkeypatch):
    """Adds a backend "wrong" for one op."""

    def add(op, function):
        row = Row(op, "wrong", "wrong")
        monkeypatch.setattr(registry, "rows_of", lambda name: tuple(row for row in registry.TABLE if row.op == name))
        monkeypatch.setattr(registry, "TABLE", (*registry.TABLE, row))
        load = registry._load
        monkeypatch.setattr(registry, "_load", lambda module, op: function if module == "wrong" else load(module, op))
        registry.choose.cache_clear()

    yield add
    monkeypatch.undo()
    registry.choose.cache_clear()


@pytest.mark.parametrize("op, function", WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_backend_is_rejected(op, function, wrong_backend):
    wrong_backend(op, function)

    def check_all():
        for case in SPECS[op].cases():
            short = replace(case, lens=case.lens[:3], q_lens=case.q_lens[:3])
            check_backend(op, short, make_inputs(op, short), "wrong")

    with pytest.raises((AssertionError, IndexError)):
        check_all()


@pytest.mark.parametrize("dtype, steps", [(torch.bfloat16, 2), (torch.float16, 2), (torch.float32, 18)], ids=str)
def test_a_result_may_be_one_rounding_of_its_dtype_away(dtype, steps):
    plain = torch.tensor([1.0, 0.25], dtype=dtype)  # plain torch is exact; a step at 0.25 is a quarter of eps
    for count, passes in ((steps, True), (steps + 1, False)):
        got = plain + torch.tensor([0.0, count * torch.finfo(dtype).eps / 4], dtype=dtype)
        wrong = error_beyond_budget(SPECS["paged_decode"], "result 0", got, plain, plain.double())
        assert (wrong is None) == passes, (count, wrong)


def test_codes_may_be_a_step_apart_in_one_of_a_hundred():
    loose, strict = SPECS["rope_append_kv"], SPECS["append_kv"]
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        plain = torch.full((200,), 17, dtype=torch.uint8).view(dtype)
        for count, step, passes in ((1, 1, True), (2, 1, True), (1, 2, False), (5, 1, False)):
            got = plain.clone()
            got.view(torch.uint8)[:count] += step
            assert (difference(loose, "k_pages", got, plain) is None) == passes, (dtype, count, step)
            assert difference(strict, "k_pages", got, plain)
            assert difference(loose, "q", got, plain)
    assert difference(loose, "k_pages", plain.view(torch.int8), plain)


def test_neighbouring_float8_codes_are_one_apart():
    codes = torch.tensor([-448.0, -416.0, -(2.0**-9), -0.0, 0.0, 2.0**-9, 2.0**-8]).to(torch.float8_e4m3fn)
    assert code_order(codes).diff().tolist() == [1, 124, 1, 0, 1, 1]


def test_a_right_backend_is_not(wrong_backend):
    wrong_backend("rms_norm", fused.rms_norm)
    for case in SPECS["rms_norm"].cases():
        check_backend("rms_norm", case, make_inputs("rms_norm", case), "wrong")
