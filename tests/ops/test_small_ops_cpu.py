# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels between attention and projections, on every instruction set: exactness, padding, independence."""

import pytest
import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends import cpu_params
from pagedserve.backends.reference import fused

ISAS = _C.supported_isas()
TEAMS = {num_threads: _C.Team(num_threads) for num_threads in (1, 2, 3)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")

all_isas = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def rows(count: int, width: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def padded(x: Tensor, poison: float = NAN) -> Tensor:
    """x's values amid poison: columns and rows around it are not to be read."""
    wide = torch.full((len(x) + 2, x.shape[1] + 9), poison, dtype=x.dtype)
    wide[1:-1, 5:-4] = x
    return wide[1:-1, 5:-4]


def rms_norm(x, weight, isa, *, residual=None, out=None, accumulate=False, num_threads=1, num_heads=1, quantized=0):
    out = padded(torch.full_like(x, NAN)) if out is None else out

    def heads(tensor):
        return tensor.unflatten(1, (num_heads, -1))

    params = cpu_params.rms_norm(
        heads(x), weight, None if residual is None else heads(residual), heads(out), 1e-5, accumulate
    )
    params.quantized = quantized
    _C.rms_norm(params, TEAMS[num_threads], isa)
    return out


def act_mul(gate_up, isa, *, activation=_C.Activation.silu, num_threads=1, quantized=0):
    out = padded(torch.full((len(gate_up), gate_up.shape[1] // 2), NAN, dtype=gate_up.dtype))
    params = cpu_params.act_mul(gate_up, out, activation)
    params.quantized = quantized
    _C.act_mul(params, TEAMS[num_threads], isa)
    return out


def close(got: Tensor, want: Tensor, times_eps: float = 4) -> bool:
    """want in float64; |error| within a few roundings of each value and of the largest one."""
    eps = torch.finfo(got.dtype).eps
    budget = times_eps * eps * want.abs() + times_eps * torch.finfo(torch.float32).eps * want.abs().max()
    return bool(((got.double() - want).abs() <= budget).all())


def reference_norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """In float64, of a residual that was rounded to its dtype."""
    if residual is not None:
        residual = (residual.float() + x.float()).to(x.dtype)
        x = residual
    wide = x.double()
    return wide / torch.sqrt(wide.square().mean(1, keepdim=True) + 1e-5) * weight.double(), residual


@all_isas
@all_dtypes
@pytest.mark.parametrize("hidden", [1, 7, 16, 33, 576, 1000])
def test_rms_norm_at_any_width(isa, dtype, hidden):
    x, residual, weight = rows(5, hidden, dtype), rows(5, hidden, dtype, seed=1), rows(1, hidden, seed=2)[0]
    want, _ = reference_norm(x, weight)
    assert close(rms_norm(padded(x), weight, isa), want)
    want, summed = reference_norm(x, weight, residual)
    held = padded(residual)
    assert close(rms_norm(padded(x), weight, isa, residual=held), want)
    assert torch.equal(held, summed)


@all_isas
def test_rms_norm_accumulates_and_works_in_place(isa):
    x, weight, before = rows(5, 100), rows(1, 100)[0], rows(5, 100, seed=3)
    normed = rms_norm(x, weight, isa)
    assert torch.equal(rms_norm(x, weight, isa, out=before.clone(), accumulate=True), normed + before)
    held = x.clone()
    assert torch.equal(rms_norm(held, weight, isa, out=held), normed)


@all_isas
def test_rms_norm_of_heads_norms_each_alone(isa):
    x, weight = rows(5, 3 * 40), rows(1, 40)[0]
    got = rms_norm(padded(x), weight, isa, num_heads=3)
    for head in range(3):
        columns = slice(40 * head, 40 * head + 40)
        assert torch.equal(got[:, columns], rms_norm(x[:, columns].contiguous(), weight, isa))


@all_isas
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@all_dtypes
@pytest.mark.parametrize("intermediate", [1, 37, 256, 1000])
def test_act_mul_at_any_width(isa, activation, dtype, intermediate):
    gate_up = 4 * rows(5, 2 * intermediate, dtype)
    want = torch.empty(5, intermediate, dtype=torch.float64)
    (fused.silu_mul if activation == "silu" else fused.gelu_mul)(gate_up.double(), want)
    got = act_mul(padded(gate_up), isa, activation=getattr(_C.Activation, activation))
    assert close(got, want, times_eps=8)


@all_isas
def test_act_mul_far_out(isa):
    gate = torch.tensor([[-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30]])
    got = act_mul(torch.cat([gate, torch.ones_like(gate)], 1), isa)
    assert torch.equal(got[:, 3:], gate[:, 3:])
    assert (got[:, :3].abs() < 1e-35).all()


@all_isas
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim, rotary_dim", [(8, 2), (64, 64), (80, 32), (96, 70)])
@all_dtypes
def test_rope_rotates_as_the_definition_does(isa, interleaved, head_dim, rotary_dim, dtype):
    cos_sin, positions = rows(9, rotary_dim), torch.tensor([8, 0, 3, 3], dtype=torch.int32)
    x = rows(4, 3 * head_dim, dtype)
    want = x.unflatten(1, (3, head_dim)).clone()
    fused.rope(want, positions, cos_sin, interleaved)
    held = padded(x)
    _C.rope(cpu_params.rope(held.unflatten(1, (3, head_dim)), positions, cos_sin, interleaved), TEAMS[2], isa)
    assert torch.equal(held.unflatten(1, (3, head_dim)), want)


@all_isas
def test_soft_cap_and_take_rows(isa):
    x = 50 * rows(6, 1100)
    capped = padded(x)
    _C.soft_cap(cpu_params.soft_cap(capped, 30.0), TEAMS[2], isa)
    assert close(capped, 30 * torch.tanh(x.double() / 30))
    chosen, out = torch.tensor([5, 0, 5], dtype=torch.int32), padded(torch.full((3, 1100), NAN))
    _C.take_rows(cpu_params.take_rows(padded(x), chosen, out), TEAMS[2], isa)
    assert torch.equal(out, x[chosen.long()])


@all_isas
@all_dtypes
@pytest.mark.parametrize("op", ["rms_norm", "act_mul"])
def test_bits_of_a_row_depend_on_that_row_alone(isa, dtype, op):
    x, weight = rows(23, 600, dtype), rows(1, 600)[0]

    def run(part, num_threads):
        if op == "act_mul":
            return act_mul(part, isa, num_threads=num_threads)
        return rms_norm(part, weight, isa, num_threads=num_threads)

    want = run(x, 1)
    for num_threads, first, count in ((3, 0, 23), (2, 4, 1), (3, 5, 7)):
        assert torch.equal(run(x[first : first + count], num_threads), want[first : first + count])


@all_isas
@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_numbers_stay_in_their_row(isa, bad):
    x, weight = rows(6, 200), rows(1, 200)[0]
    want, acted = rms_norm(x, weight, isa), act_mul(x, isa)
    x[2, 150] = bad
    others = torch.arange(6) != 2
    got = rms_norm(x, weight, isa)
    assert torch.equal(got[others], want[others])
    assert torch.isnan(got[2, 150])
    got = act_mul(x, isa)
    assert torch.equal(got[others], acted[others])
    assert not torch.isfinite(got[2, 50])


@all_isas
@pytest.mark.parametrize("op, width", [("rms_norm", 320), ("act_mul", 160)])
def test_norm_and_activation_quantise_what_they_write(isa, op, width):
    x, weight = 3 * rows(19, 320), rows(1, 320)[0]
    made, separate = (torch.zeros(_C.quantized_bytes(19, width), dtype=torch.uint8) for _ in range(2))
    if op == "act_mul":
        out = act_mul(x, isa, num_threads=3, quantized=made.data_ptr())
        plain = act_mul(x, isa)
    else:
        out = rms_norm(x, weight, isa, num_threads=3, quantized=made.data_ptr())
        plain = rms_norm(x, weight, isa)
    assert torch.equal(out, plain)
    _C.quantize_rows(cpu_params.quantize_rows(out, separate.data_ptr()), TEAMS[2], isa)
    assert torch.equal(made, separate)
    assert made.any()
