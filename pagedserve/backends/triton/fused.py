# SPDX-License-Identifier: Apache-2.0
"""The launches of the elementwise ops."""

from __future__ import annotations

from torch import Tensor

from pagedserve.backends.triton.cache import rows_argument
from pagedserve.backends.triton.kernels.act_mul import act_mul_kernel
from pagedserve.backends.triton.kernels.rms_norm import rms_norm_kernel
from pagedserve.backends.triton.kernels.rope import rope_kernel
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.sizes import ceil_div, power_of_two
from pagedserve.backends.triton.target import Target


def rms_norm(
    target: Target, x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, accumulate: bool
) -> list[Launch]:
    num_tokens, num_heads, hidden = x.shape
    config = target.config("rms_norm", hidden=hidden)
    block = min(power_of_two(hidden), config["block"])
    return [
        Launch(
            rms_norm_kernel,
            (num_tokens * num_heads,),
            {
                "x_rows": rows_argument(x),
                "weight": weight,
                "residual": residual,
                "residual_token_stride": 0 if residual is None else residual.stride(0),
                "out_rows": rows_argument(out),
                "num_heads": num_heads,
                "eps": float(eps),
            },
            {"HIDDEN": hidden, "ACCUMULATE": bool(accumulate), "BLOCK": block},
            num_warps=min(config["num_warps"], max(block // 256, 1)),
            measured=config.measured,
        )
    ]


def _act_mul(target: Target, op: str, gate_up: Tensor, out: Tensor) -> list[Launch]:
    num_tokens, intermediate = out.shape
    config = target.config(op, intermediate=intermediate)
    block = min(power_of_two(intermediate), config["block"])
    return [
        Launch.configured(
            act_mul_kernel,
            (num_tokens, ceil_div(intermediate, block)),
            {
                "gate_up": gate_up,
                "out": out,
                "gate_up_stride": gate_up.stride(0),
                "out_stride": out.stride(0),
            },
            {"INTERMEDIATE": intermediate, "GELU": op == "gelu_mul", "BLOCK": block},
            config,
        )
    ]


def silu_mul(target: Target, gate_up: Tensor, out: Tensor) -> list[Launch]:
    return _act_mul(target, "silu_mul", gate_up, out)


def gelu_mul(target: Target, gate_up: Tensor, out: Tensor) -> list[Launch]:
    return _act_mul(target, "gelu_mul", gate_up, out)


def rope(target: Target, x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool) -> list[Launch]:
    num_tokens, num_heads, _ = x.shape
    rotary_dim = cos_sin.shape[1]
    config = target.config("rope", rotary_dim=rotary_dim)
    heads = min(power_of_two(num_heads), config["heads"])
    return [
        Launch.configured(
            rope_kernel,
            (num_tokens, ceil_div(num_heads, heads)),
            {
                "x": rows_argument(x),
                "positions": positions,
                "cos_sin": cos_sin,
                "num_heads": num_heads,
            },
            {
                "ROTARY_DIM": rotary_dim,
                "INTERLEAVED": bool(interleaved),
                "HEADS": heads,
                "BLOCK": power_of_two(rotary_dim // 2),
            },
            config,
        )
    ]
