# SPDX-License-Identifier: Apache-2.0
"""The elementwise ops, the definition. Arithmetic is float32, or float64 for float64 tensors; results round once."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In the type of arithmetic."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, accumulate: bool) -> None:
    """x / sqrt(mean(x^2) + eps) * weight. With a residual, x is what the residual holds after residual += x."""
    if residual is not None:
        residual.copy_(wide(residual) + wide(x))
        x = residual
    x = wide(x)
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight
    out.copy_(wide(out) + normed if accumulate else normed)


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool) -> None:
    """Rotates pairs (i, i + rotary_dim / 2), or (2 i, 2 i + 1) where interleaved, in place."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[positions.long(), None, :half], cos_sin[positions.long(), None, half:]  # [num_tokens, 1, half]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = wide(x[..., first]), wide(x[..., second])
    rotated = a * cos - b * sin, b * cos + a * sin
    x[..., first], x[..., second] = rotated[0].to(x.dtype), rotated[1].to(x.dtype)


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    gate, up = wide(gate_up).chunk(2, dim=1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def gelu_mul(gate_up: Tensor, out: Tensor) -> None:
    gate, up = wide(gate_up).chunk(2, dim=1)
    out.copy_(torch.nn.functional.gelu(gate, approximate="tanh") * up)


def soft_cap(x: Tensor, cap: float) -> None:
    x.copy_(cap * torch.tanh(x / cap))
