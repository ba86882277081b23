# SPDX-License-Identifier: Apache-2.0
"""The elementwise ops between attention and projections, at the demo model's and an 8-billion model's widths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from bench.cases.case import BenchCase, Inputs

WIDTHS = {"default": ((1, 576), (32, 576), (1024, 576), (32, 4096)), "quick": ((3, 16),)}


def rms_norm(grid: str) -> list[BenchCase]:
    def case(num_tokens: int, hidden: int, residual: bool) -> BenchCase:
        def make() -> Inputs:
            inputs: Inputs = {
                "x": torch.randn(num_tokens, hidden),
                "weight": torch.randn(hidden),
                "out": torch.empty(num_tokens, hidden),
            }
            if residual:
                inputs["residual"] = torch.randn(num_tokens, hidden)
            return inputs

        def by_torch(inputs: Inputs) -> Tensor:
            x = inputs["residual"].add_(inputs["x"]) if residual else inputs["x"]
            return functional.rms_norm(x, (hidden,), inputs["weight"], 1e-6)

        name = f"{num_tokens}x{hidden}-f32" + ("-residual" if residual else "")
        return BenchCase("rms_norm", name, make, by_torch, "add_, then rms_norm" if residual else "rms_norm")

    return [case(*width, residual) for width in WIDTHS[grid] for residual in (False, True)]


def rope(grid: str) -> list[BenchCase]:
    shapes = ((1, 12, 64), (32, 12, 64), (1024, 12, 64), (32, 40, 128)) if grid == "default" else ((3, 2, 8),)
    max_position = 8192 if grid == "default" else 32

    def case(num_tokens: int, num_heads: int, head_dim: int) -> BenchCase:
        half = head_dim // 2

        def make() -> Inputs:
            return {
                "x": torch.randn(num_tokens, num_heads, head_dim),
                "positions": torch.randint(0, max_position, (num_tokens,), dtype=torch.int32),
                "cos_sin": torch.randn(max_position, head_dim).sign() / 2**0.5,
            }

        def by_torch(inputs: Inputs) -> None:
            angles = inputs["cos_sin"][inputs["positions"].long()][:, None]
            cos, sin = angles[..., :half], angles[..., half:]
            a, b = inputs["x"][..., :half].clone(), inputs["x"][..., half:]
            inputs["x"][..., :half] = a * cos - b * sin
            inputs["x"][..., half:] = b * cos + a * sin

        return BenchCase("rope", f"{num_tokens}-h{num_heads}-d{head_dim}-f32", make, by_torch, "elementwise")

    return [case(*shape) for shape in shapes]


def _act_mul(op: str, grid: str, act: Callable[[Tensor], Tensor], torch_way: str) -> list[BenchCase]:
    shapes = ((1, 1536), (32, 1536), (1024, 1536), (32, 14336)) if grid == "default" else ((3, 16),)

    def case(num_tokens: int, intermediate: int) -> BenchCase:
        def make() -> Inputs:
            return {
                "gate_up": torch.randn(num_tokens, 2 * intermediate),
                "out": torch.empty(num_tokens, intermediate),
            }

        def by_torch(inputs: Inputs) -> Tensor:
            gate_up = inputs["gate_up"]
            return act(gate_up[:, :intermediate]) * gate_up[:, intermediate:]

        return BenchCase(op, f"{num_tokens}x{intermediate}-f32", make, by_torch, torch_way)

    return [case(*shape) for shape in shapes]


def silu_mul(grid: str) -> list[BenchCase]:
    return _act_mul("silu_mul", grid, functional.silu, "silu, then multiply")


def gelu_mul(grid: str) -> list[BenchCase]:
    return _act_mul("gelu_mul", grid, lambda gate: functional.gelu(gate, approximate="tanh"), "gelu, then multiply")


def soft_cap(grid: str) -> list[BenchCase]:
    num_tokens, hidden = (8, 262144) if grid == "default" else (2, 100)

    def make() -> Inputs:
        return {"x": torch.randn(num_tokens, hidden) * 20, "cap": 30.0}

    def by_torch(inputs: Inputs) -> Tensor:
        return inputs["x"].div_(30.0).tanh_().mul_(30.0)

    return [BenchCase("soft_cap", f"{num_tokens}x{hidden}-f32", make, by_torch, "div_, tanh_, mul_")]
