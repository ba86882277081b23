# SPDX-License-Identifier: Apache-2.0
"""append_kv and merge_states of the CPU backend: every rounding, and what must show through."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedserve import ops
from tests.ops.attention_calls import ISAS, LARGEST_CODE, NAN

INF = float("inf")
all_isas = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def instruction_set(request):
    with mock.patch.dict(os.environ, PAGEDSERVE_CPU_ISA=request.getfixturevalue("isa")):
        yield


def append(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows [num_tokens, head_dim] as the pages hold them, int4 unpacked, and their scales."""
    num_tokens, head_dim = x.shape
    pages = torch.full((num_tokens, 1, 1, head_dim // 2 if dtype == torch.uint8 else head_dim), 77).to(dtype)
    scales = torch.full((num_tokens, 1, 1), NAN) if dtype in LARGEST_CODE else None
    rows = x[:, None]
    ops.append_kv(
        rows, rows, pages, pages.clone(), torch.arange(num_tokens), k_scales=scales, v_scales=scales, backend="cpu"
    )
    codes = pages[:, 0, 0]
    if dtype == torch.uint8:
        codes = torch.stack([codes % 16, codes // 16], dim=-1).flatten(-2).to(torch.int8) - 8
    return codes, None if scales is None else scales[:, 0, 0]


def rows_of(values: Tensor, largest: float | None = None, head_dim: int = 64) -> Tensor:
    """values in rows; each begins with `largest`, which sets the row's scale."""
    head = [] if largest is None else [torch.tensor([largest])]
    rest = values.split(head_dim - len(head))
    rows = [torch.cat([*head, part, torch.zeros(head_dim - len(head) - len(part))]) for part in rest]
    return torch.stack(rows)


@all_isas
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["int8", "int4"])
def test_whole_codes_round_to_nearest_even(isa, dtype):
    largest = LARGEST_CODE[dtype]
    values = torch.arange(-largest, largest + 0.01, 0.25)
    values = torch.cat([values, torch.nextafter(values, values + 1), torch.nextafter(values, values - 1)])
    x = rows_of(values, float(largest)).clamp(-largest, largest)
    codes, scales = append(x, dtype)
    assert (scales == 1).all()
    assert torch.equal(codes, x.round().to(torch.int8))


@all_isas
def test_fp8_rounds_to_nearest_even(isa):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()].sort().values
    between = (codes[1:] + codes[:-1]) / 2
    values = torch.cat([codes, between, torch.nextafter(between, codes[1:]), torch.nextafter(between, codes[:-1])])
    values = torch.cat([values, torch.randn(4000) * 100, torch.randn(4000) / 100, torch.tensor([-0.0, 1e-30])])
    x = rows_of(values.clamp(-448, 448), 448.0)
    got, scales = append(x, torch.float8_e4m3fn)
    assert (scales == 1).all()
    assert torch.equal(got.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))


@all_isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_floats_round_as_torch_rounds(isa, dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    some = torch.from_numpy(bits.view(np.float32).copy())
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    between = (every[1:] + every[:-1]) / 2
    x = rows_of(torch.cat([some, every, between, torch.tensor([INF, -INF, NAN, 65519.9, 65520.0, 1e-45])]))
    got, _ = append(x, dtype)
    expected = x.to(dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5))
    assert torch.equal(append(got, dtype)[0].nan_to_num(nan=0.5), got.nan_to_num(nan=0.5))  # and stay what they are


@all_isas
@pytest.mark.parametrize("dtype", LARGEST_CODE, ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 37, 39])
def test_a_row_that_is_not_finite_reads_as_nan(isa, dtype, bad, place):
    x = torch.randn(3, 40)
    x[1, place] = bad
    codes, scales = append(x, dtype)
    values = codes.float() * scales[:, None]
    assert values[1].isnan().all()
    assert values[[0, 2]].isfinite().all()


@all_isas
@pytest.mark.parametrize("dtype", LARGEST_CODE, ids=str)
def test_the_largest_value_survives(isa, dtype):
    x = torch.randn(500, 40).clamp(-3, 3) * torch.logspace(-38, 38, 500)[:, None]  # up to 3e38: finite
    codes, scales = append(x, dtype)
    assert codes.float().abs().amax(-1).max() == LARGEST_CODE[dtype]
    values = codes.double() * scales.double()[:, None]
    normal = scales > 1e-37
    error = ((values - x).abs().amax(-1) / x.abs().amax(-1).double())[normal]
    assert error.max() < {torch.int8: 0.51 / 127, torch.float8_e4m3fn: 16.1 / 448, torch.uint8: 0.51 / 7}[dtype]
    zeros, ones = append(torch.zeros(2, 40), dtype)
    assert not zeros.float().any()
    assert (ones == 1).all()


@all_isas
def test_negative_slots_are_skipped(isa):
    pages = torch.full((4, 3, 2, 8), NAN)
    k, v = torch.randn(2, 5, 2, 8)
    v_pages = pages.clone()
    ops.append_kv(k, v, pages, v_pages, torch.tensor([7, -1, 0, -(2**40), 11]), backend="cpu")
    for x, written in ((k, pages), (v, v_pages)):
        rows = written.view(12, 2, 8)
        assert torch.equal(rows[[7, 0, 11]], x[[0, 2, 4]])
        assert rows[[1, 2, 3, 4, 5, 6, 8, 9, 10]].isnan().all()


def merge(o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return ops.merge_states(o, lse, backend="cpu")


@all_isas
def test_empty_states_add_nothing_whatever_they_hold(isa):
    o, lse = torch.randn(3, 4, 2, 24), torch.randn(3, 4, 2)
    o[1], lse[1] = NAN, -INF
    expected = merge(o[[0, 2]], lse[[0, 2]])
    for got, want in zip(merge(o, lse), expected, strict=True):
        assert torch.equal(got, want)
    nothing, no_lse = merge(torch.full((2, 1, 1, 8), NAN), torch.full((2, 1, 1), -INF))
    assert not nothing.any()
    assert (no_lse == -INF).all()


@all_isas
def test_nan_shows(isa):
    o, lse = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 1)
    o[0, 0, 0, 5], lse[1, 1] = NAN, NAN
    lse[0, 2], lse[1, 2] = NAN, -INF
    merged, merged_lse = merge(o, lse)
    assert merged[0].isnan().sum() == 1
    assert merged[1:].isnan().all()
    assert merged_lse.isnan().tolist() == [[False], [True], [True]]


@all_isas
def test_one_state_is_itself_and_order_is_kept(isa):
    o, lse = torch.randn(1, 5, 3, 72), torch.randn(1, 5, 3) * 100
    merged, merged_lse = merge(o, lse)
    assert torch.equal(merged, o[0])
    assert torch.equal(merged_lse, lse[0])
    far = torch.tensor([0.0, -200.0]).view(2, 1, 1)
    states = torch.stack([torch.ones(1, 1, 8), torch.full((1, 1, 8), 5.0)])
    assert torch.equal(merge(states, far)[0], states[0])
