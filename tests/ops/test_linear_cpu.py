# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels of linear, quantize_rows and embed against exact arithmetic, on every instruction set there is."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends import cpu_params
from pagedserve.backends.cpu_weight import PackedWeight
from pagedserve.backends.reference.linear import quantise_activations
from pagedserve.ops import Weight

ISAS = _C.supported_isas()
TEAMS = {num_threads: _C.Team(num_threads) for num_threads in (1, 2, 3)}
FORMATS = ("f32", "bf16", "q8", "q4")
LOW_BIT = ("q8", "q4")
NAN, INF = float("nan"), float("inf")
POISON = 1234.5
EPS = 2.0**-24  # of one float32 rounding

all_isas = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
all_formats = pytest.mark.parametrize("format", FORMATS)
low_bit = pytest.mark.parametrize("format", LOW_BIT)


def make_weight(format: str, out_features: int, in_features: int, half: bool = True, seed: int = 0) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    if format in ("f32", "bf16"):
        return Weight.from_dense(torch.randn(out_features, in_features, generator=generator), format)
    groups = (out_features, in_features // 32)
    scales = [torch.randn(groups, generator=generator) for _ in range(2)]
    if half:
        scales = [scale.half().float() for scale in scales]
    if format == "q8":
        codes = torch.randint(-127, 128, (out_features, in_features), generator=generator, dtype=torch.int8)
        return Weight("q8", codes, scales[0])
    codes = torch.randint(0, 256, (out_features, in_features // 2), generator=generator, dtype=torch.uint8)
    return Weight("q4", codes, *scales)


def tokens(count: int, width: int, seed: int = 1) -> Tensor:
    """Rows of very different sizes, so that one quantised with another's scale is far off."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-3, 3, count)[:, None]


def linear(x, weight, isa, *, bias=None, out=None, accumulate=False, num_threads=1, quantized=0) -> Tensor:
    if out is None:
        out = torch.full((len(x), weight.out_features), NAN)
    pack = PackedWeight(weight, TEAMS[num_threads])
    params = cpu_params.linear(x, weight, pack, bias, out, accumulate)
    params.quantized = quantized
    _C.linear(params, TEAMS[num_threads], isa)
    return out


def oracle(x: Tensor, weight: Weight) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and the most that float32 sums in any one order can be off."""
    dense = weight.dense().double().numpy()
    if weight.format not in LOW_BIT:
        exact = x.double().numpy()
        return exact @ dense.T, (2 * weight.in_features + 4) * EPS * (np.abs(exact) @ np.abs(dense).T)
    groups = x.numpy().reshape(len(x), -1, 32)
    scales = np.abs(groups).max(2) / np.float32(127)
    codes = np.rint(groups / np.where(scales == 0, np.float32(1), scales)[..., None])
    seen = (codes.astype(np.float64) * scales[..., None].astype(np.float64)).reshape(len(x), -1)
    # Terms of a block: its codes' dot and its minimum. Their sizes, not their sum's, bound the rounding.
    minimum = 0.0 if weight.minimums is None else weight.minimums.double().numpy()
    dots = dense - np.repeat(np.broadcast_to(minimum, weight.scales.shape), 32, axis=1)
    size = np.abs(seen) @ np.abs(dots).T + np.abs(seen) @ np.abs(dense - dots).T
    return seen @ dense.T, (4 * weight.in_features // 32 + 8) * EPS * size


@all_isas
@all_formats
@pytest.mark.parametrize("out_features, in_features", [(1, 32), (16, 64), (51, 96), (192, 576), (37, 1536)])
def test_equals_exact_arithmetic(format, isa, out_features, in_features):
    weight = make_weight(format, out_features, in_features)
    for num_tokens in (1, 2, 7, 16, 17, 31):
        x = tokens(num_tokens, in_features)
        want, budget = oracle(x, weight)
        assert (np.abs(linear(x, weight, isa).numpy() - want) <= budget + 1e-30).all(), num_tokens


@all_isas
@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("in_features", [1, 2, 37])
def test_dense_formats_take_any_width(format, isa, in_features):
    weight, x = make_weight(format, 19, in_features), tokens(5, in_features)
    want, budget = oracle(x, weight)
    assert (np.abs(linear(x, weight, isa).numpy() - want) <= budget).all()


@all_isas
@low_bit
def test_scales_that_f16_cannot_hold_stay_f32(format, isa):
    weight, x = make_weight(format, 40, 96, half=False), tokens(9, 96)
    want, budget = oracle(x, weight)
    assert (np.abs(linear(x, weight, isa).numpy() - want) <= budget).all()
    packed = [_C.packed_bytes(getattr(_C.WeightFormat, format), 40, 96, half) for half in (True, False)]
    assert packed[0] < packed[1]


@all_isas
@low_bit
def test_largest_codes_do_not_saturate(format, isa):
    """Every code and every activation at the end of its range, signs alternating and not."""
    width = 64
    for sign in (torch.ones(width), torch.tensor([1.0, -1.0]).repeat(width // 2)):
        for code in (-128, -127, 127) if format == "q8" else (0, 255):
            values = torch.full((16, width), code, dtype=torch.int8) if format == "q8" else None
            scales = torch.ones(16, 2)
            weight = (
                Weight("q8", values, scales)
                if format == "q8"
                else Weight("q4", torch.full((16, width // 2), code, dtype=torch.uint8), scales, torch.zeros(16, 2))
            )
            x = sign[None] * 127
            want, _ = oracle(x, weight)
            assert torch.equal(linear(x, weight, isa).double(), torch.from_numpy(want))


@all_formats
def test_instruction_sets_agree_to_the_bit(format):
    """Integers are exact and every float step is a fused multiply-add, which the portable build may not have."""
    weight, x = make_weight(format, 100, 288), tokens(21, 288)
    fused = [isa for isa in ISAS if isa != _C.Isa.portable]
    results = [linear(x, weight, isa) for isa in fused]
    assert all(torch.equal(results[0], other) for other in results[1:])


@all_isas
@all_formats
def test_bits_of_a_row_depend_on_that_row_alone(format, isa):
    weight = make_weight(format, 75, 160)
    x = tokens(140, 160)
    want = linear(x, weight, isa)
    for num_threads in (2, 3):
        assert torch.equal(linear(x, weight, isa, num_threads=num_threads), want)
    for first, count in ((0, 1), (3, 1), (5, 2), (1, 7), (2, 9), (60, 17), (7, 130)):
        part = linear(x[first : first + count], weight, isa)
        assert torch.equal(part, want[first : first + count]), (first, count)


@all_isas
@all_formats
def test_bias_and_accumulate(format, isa):
    weight, x = make_weight(format, 37, 64), tokens(5, 64)
    bias, before = torch.randn(37), torch.randn(5, 37)
    product = linear(x, weight, isa)
    assert torch.equal(linear(x, weight, isa, bias=bias), product + bias)
    out = before.clone()
    assert torch.equal(linear(x, weight, isa, bias=bias, out=out, accumulate=True), product + bias + before)


@all_isas
@all_formats
def test_reads_and_writes_its_own_columns_only(format, isa):
    weight, x = make_weight(format, 37, 64), tokens(20, 64)
    wide_x, wide_out = torch.full((22, 70), NAN), torch.full((22, 50), POISON)
    wide_x[1:21, 3:67] = x
    out = linear(wide_x[1:21, 3:67], weight, isa, out=wide_out[1:21, 6:43])
    assert torch.equal(out, linear(x, weight, isa))
    wide_out[1:21, 6:43] = POISON
    assert (wide_out == POISON).all()


@all_isas
@all_formats
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_numbers_stay_in_their_row(format, isa, bad):
    weight, x = make_weight(format, 33, 96), tokens(11, 96)
    want = linear(x, weight, isa)
    x[4, 50] = bad
    got = linear(x, weight, isa)
    others = torch.arange(11) != 4
    assert torch.equal(got[others], want[others])
    assert not torch.isfinite(got[4]).any()
    if format in LOW_BIT:
        assert torch.isnan(got[4]).all()


def quantize_rows(x: Tensor, isa, num_threads: int = 1) -> Tensor:
    memory = torch.full((_C.quantized_bytes(*x.shape),), 0x55, dtype=torch.uint8)
    _C.quantize_rows(cpu_params.quantize_rows(x, memory.data_ptr()), TEAMS[num_threads], isa)
    return memory


def unpack_rows(memory: Tensor, num_tokens: int, width: int) -> tuple[np.ndarray, ...]:
    """codes [num_tokens, blocks, 32], then scales, scaled sums and offsets [num_tokens, blocks]."""
    block = np.dtype([("codes", "i1", (8, 32)), ("scales", "f4", 8), ("scaled_sums", "f4", 8), ("offsets", "i4", 8)])
    tiles = memory.numpy().view(block).reshape(-1, width // 32)  # [tiles, blocks]
    by_token = (np.swapaxes(tiles[name], 1, 2) for name in block.names)  # [tiles, 8, blocks, ..]
    return tuple(field.reshape(-1, *field.shape[2:])[:num_tokens] for field in by_token)


@all_isas
def test_quantised_rows_are_the_definition_to_the_bit(isa):
    x = tokens(21, 160)
    x[3, 32:64] = 0
    x[5] = torch.arange(160) - 79.5  # ties
    x[6] = 127 * torch.sign(x[6])
    x[7, :32] = 1e-42  # a scale below the normal numbers counts as none
    codes, scales, scaled_sums, offsets = unpack_rows(quantize_rows(x, isa), *x.shape)
    want = quantise_activations(x)
    want[7, :32] = 0
    assert np.array_equal((codes * scales[..., None]).reshape(x.shape), want.numpy())
    sums = codes.astype(np.int32).sum(2)
    assert np.array_equal(offsets, -128 * sums)
    assert np.array_equal(scaled_sums, scales * sums.astype(np.float32))
    assert (scales[3, 1], scales[7, 0]) == (0, 0)


@all_isas
@low_bit
def test_rows_quantised_beforehand_give_the_same_bits(format, isa):
    weight = make_weight(format, 50, 96)
    for num_tokens in (1, 6, 33):
        x = tokens(num_tokens, 96)
        memory = quantize_rows(x, isa, num_threads=3)
        hidden = torch.full_like(x, NAN)  # x itself is not read
        got = linear(hidden, weight, isa, quantized=memory.data_ptr())
        assert torch.equal(got, linear(x, weight, isa))


@all_isas
@all_formats
def test_embed_reads_rows_of_the_packed_weight(format, isa):
    weight = make_weight(format, 45, 96, half=format == "q8")
    ids = torch.tensor([0, 44, 15, 16, 31, 7, 7], dtype=torch.int32)
    out = torch.full((7, 100), POISON)
    pack = PackedWeight(weight, TEAMS[2])
    params = cpu_params.embed(ids, weight, pack, out[:, :96], 2.5)
    _C.embed(params, TEAMS[2], isa)
    assert torch.equal(out[:, :96], weight.rows(ids) * 2.5)
    assert (out[:, 96:] == POISON).all()


def test_f16_fits_are_found_exactly():
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    finite = halves[~halves.isnan()].contiguous()
    assert _C.fits_half(finite.data_ptr(), finite.numel())
    for value in (1 + 2.0**-11, 65536.0, 65520.0, 2.0**-25, 1.5 * 2.0**-24, NAN):
        assert not _C.fits_half(torch.tensor([value]).data_ptr(), 1), value
