# SPDX-License-Identifier: Apache-2.0
"""The reference of everything but attention and sampling, against formulas written again in float64."""

import math

import pytest
import torch

from pagedserve import ops
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS
from tests.ops.agreement import copied, in_float64

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def near(got, want):
    """Within one rounding of got's dtype and float32 arithmetic."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), want.double(), rtol=4 * eps, atol=4 * eps * float(want.abs().max()))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm(dtype):
    x, weight, residual = torch.randn(4, 24).to(dtype), torch.randn(24), torch.randn(4, 24).to(dtype)
    wide = x.double()
    want = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    near(ops.rms_norm(x, weight, eps=1e-5, backend="reference"), want)

    kept = residual.clone()
    out = ops.rms_norm(x, weight, eps=1e-5, residual=kept, backend="reference")
    total = (residual.double() + x.double()).to(dtype)
    assert torch.equal(kept, total)
    near(out, total.double() / (total.double().square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double())

    base = torch.randn(4, 24).to(dtype)
    out = ops.rms_norm(x, weight, eps=1e-5, accumulate=True, out=base.clone(), backend="reference")
    near(out, base.double() + want)


def test_rms_norm_of_heads_and_in_place():
    x, weight = torch.randn(3, 2, 8), torch.randn(8)
    want = torch.stack([ops.rms_norm(x[:, head], weight, backend="reference") for head in range(2)], dim=1)
    assert torch.equal(ops.rms_norm(x, weight, backend="reference"), want)
    assert ops.rms_norm(x, weight, out=x, backend="reference") is x
    assert torch.equal(x, want)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rope(dtype, interleaved):
    """Each pair as a complex number, times e^(i angle)."""
    x, positions = torch.randn(5, 2, 12).to(dtype), torch.tensor([0, 3, 1, 30, 7], dtype=torch.int32)
    pairs = x[..., :8].double()
    pairs = pairs.unflatten(2, (4, 2)) if interleaved else pairs.unflatten(2, (2, 4)).transpose(2, 3)
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.exp(1j * angles)[:, None]
    turned = torch.view_as_real(turned)
    want = x.double()
    want[..., :8] = turned.flatten(2) if interleaved else turned.transpose(2, 3).flatten(2)
    got = ops.rope(x, positions, ops.rope_table(8, 40), interleaved=interleaved, backend="reference")
    assert got is x
    near(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations(dtype):
    gate_up = (torch.randn(3, 20) * 4).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=1)
    near(ops.silu_mul(gate_up, backend="reference"), gate / (1 + torch.exp(-gate)) * up)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    near(ops.gelu_mul(gate_up, backend="reference"), gate / 2 * (1 + torch.tanh(inner)) * up)


def test_soft_cap_in_place():
    x = torch.randn(3, 20) * 50
    want = 30 * torch.tanh(x.double() / 30)
    assert ops.soft_cap(x, 30.0, backend="reference") is x
    near(x, want)
    assert x.abs().max() <= 30


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_linear_of_floats(format):
    x, weight = torch.randn(3, 40), ops.Weight.from_dense(torch.randn(7, 40), format)
    bias, base = torch.randn(7), torch.randn(3, 7)
    want = x.double() @ weight.dense().double().T
    near(ops.linear(x, weight, backend="reference"), want)
    near(ops.linear(x, weight, bias=bias, backend="reference"), want + bias)
    near(ops.linear(x, weight, out=base.clone(), accumulate=True, backend="reference"), base + want)


@pytest.mark.parametrize("format", ["q8", "q4"])
def test_linear_of_low_bits_rounds_its_input(format):
    """Code by code in whole numbers: sum over groups of scale_x * scale_w * (codes . codes), plus minimums."""
    x, weight = torch.randn(2, 64), ops.Weight.from_dense(torch.randn(5, 64), format)
    x[1, 32:] = 0
    dense = weight.dense().double()
    want = torch.zeros(2, 5, dtype=torch.float64)
    for token in range(2):
        for group in range(0, 64, 32):
            values = x[token, group : group + 32]
            scale = values.abs().max() / 127
            codes = torch.tensor([round(float(v / scale)) if scale > 0 else 0 for v in values], dtype=torch.float64)
            assert codes.abs().max() <= 127
            want[token] += dense[:, group : group + 32] @ codes * scale.double()
    near(ops.linear(x, weight, backend="reference"), want)


@pytest.mark.parametrize("format", ["q8", "q4"])
def test_linear_of_infinite_input_is_not_a_number(format):
    """And of NaN; other tokens do not notice. Numbers too small for a scale count as zeros."""
    weight = ops.Weight.from_dense(torch.randn(5, 64), format)
    x = torch.randn(4, 64)
    x[0, 3], x[1, 40], x[2] = torch.inf, torch.nan, 1e-41
    got = ops.linear(x, weight, backend="reference")
    assert got[:2].isnan().all()
    assert (got[2] == 0).all()
    assert got[3].isfinite().all()


def test_embed_and_take_rows():
    weight = ops.Weight.from_dense(torch.randn(9, 64), "q4")
    ids = torch.tensor([8, 0, 8], dtype=torch.int32)
    assert torch.equal(ops.embed(ids, weight, scale=2.0, backend="reference"), weight.dense()[ids.long()] * 2)
    x = torch.randn(9, 3)
    assert torch.equal(ops.take_rows(x, ids, backend="reference"), x[ids.long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_append_writes_its_slots_and_nothing_else(dtype):
    pages = [torch.zeros(3, 4, 2, 8).to(dtype) for _ in range(2)]
    quantised = dtype in (torch.int8, torch.float8_e4m3fn)
    scales = [torch.full((3, 4, 2), 5.0) for _ in range(2)] if quantised else [None, None]
    k, v = torch.randn(4, 2, 8), torch.randn(4, 2, 8) * 100
    k[1, 0] = 0
    slots = torch.tensor([9, 0, -1, 7])
    ops.append_kv(k, v, *pages, slots, k_scales=scales[0], v_scales=scales[1], backend="reference")
    for new, page, scale in zip((k, v), pages, scales, strict=True):
        flat = page.view(12, 2, 8).float()
        for token, slot in enumerate(slots.tolist()):
            if slot < 0:
                continue
            if scale is None:
                assert torch.equal(flat[slot], new[token].to(dtype).float())
                continue
            largest = {torch.int8: 127, torch.float8_e4m3fn: 448}[dtype]
            amax = new[token].abs().amax(dim=1)
            kept = scale.view(12, 2)[slot]
            assert torch.equal(kept, torch.where(amax == 0, 1.0, amax / largest))
            step = kept[:, None] / 2 if dtype == torch.int8 else new[token].abs() / 16 + kept[:, None] * 2**-10
            assert ((flat[slot] * kept[:, None] - new[token]).abs() <= step * 1.001).all()
        others = [slot for slot in range(12) if slot not in slots.tolist()]
        assert (flat[others] == 0).all()
        assert scale is None or (scale.view(12, 2)[others] == 5).all()


def test_int4_keeps_two_elements_a_byte():
    """By hand: amax / 7, ties to even, the even element in the low half, each code above 8."""
    pages, scales = torch.zeros(1, 1, 2, 4, dtype=torch.uint8), torch.zeros(1, 1, 2)
    k = torch.tensor([[[7.0, -7.0, 0.5, 1.5, -2.5, 0.0, 3.0, -1.0], [0.0] * 8]])
    slots = torch.tensor([0])
    v_pages, v_scales = pages.clone(), scales.clone()
    ops.append_kv(k, 2 * k, pages, v_pages, slots, k_scales=scales, v_scales=v_scales, backend="reference")
    assert pages[0, 0, 0].tolist() == [0x1F, 0xA8, 0x86, 0x7B]
    assert pages[0, 0, 1].tolist() == [0x88] * 4
    assert scales[0, 0].tolist() == [1.0, 1.0]
    assert torch.equal(v_pages, pages)
    assert v_scales[0, 0].tolist() == [2.0, 1.0]


def test_copies_happen_in_order():
    """The second copy reads what the first wrote."""
    pool = torch.arange(4.0)[:, None].repeat(1, 3)
    ops.copy_pages(pool, pool, torch.tensor([0, 1]), torch.tensor([1, 2]), backend="reference")
    assert pool[:, 0].tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize("name", [name for name in SPECS if name != "sample"])
def test_float64_inputs_give_float64_arithmetic(name):
    """The oracle of every other test: one float32 rounding anywhere would show."""
    case = next(iter(SPECS[name].cases()))
    wide = in_float64(SPECS[name], copied(make_inputs(name, case)))
    result = getattr(ops, name)(**wide, backend="reference")
    tensors = [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]
    if name == "embed":  # its output follows the weight
        assert tensors[0].dtype == torch.float32
        return
    assert all(t.dtype == torch.float64 for t in tensors)
