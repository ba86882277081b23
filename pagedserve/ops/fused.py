# SPDX-License-Identifier: Apache-2.0
"""The elementwise ops between attention and projections."""

from __future__ import annotations

from torch import Tensor

from pagedserve.ops.call import run
from pagedserve.ops.check import MAKE
from pagedserve.specs import SPECS

RMS_NORM, ROPE, SILU_MUL, GELU_MUL, SOFT_CAP = (
    SPECS[name] for name in ("rms_norm", "rope", "silu_mul", "gelu_mul", "soft_cap")
)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    accumulate: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Root-mean-square normalisation, with the residual addition before it.

    Args:
        x: [num_tokens, hidden], or [num_tokens, num_heads, hidden] for a norm of each head; float32, bfloat16, float16.
        weight: [hidden] float32.
        eps: added to the mean square.
        residual: like x; residual += x first, in place, and what it then holds is normed. With two-axis x only.
        accumulate: add the result to out instead of replacing it; out is required.
        out: like x, may be x; made if None.
        backend: "auto", or one of `backends_of("rms_norm")`.

    Returns:
        out: x / sqrt(mean(x^2) + eps) * weight, float32 arithmetic, rounded once to x's dtype.

    Raises:
        InvalidInput: shapes or dtypes do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads and writes x once, and the residual once.
    Source: Zhang and Sennrich 2019.
    """
    given = MAKE if out is None and not accumulate else out
    made: Tensor = run(RMS_NORM, (x, weight, residual, given), {"eps": eps, "accumulate": accumulate}, backend)[3]
    return out if out is not None else made.view_as(x)


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, *, interleaved: bool = False, backend: str = "auto") -> Tensor:
    """Rotate the first rotary_dim elements of each head by its token's position, in place.

    Args:
        x: [num_tokens, num_heads, head_dim], float32, bfloat16 or float16, written.
        positions: [num_tokens] int32, below max_position.
        cos_sin: [max_position, rotary_dim] float32 as `rope_table` makes it: cosines, then sines.
        interleaved: rotate pairs (2 i, 2 i + 1), as GPT-J does, instead of (i, i + rotary_dim / 2).
        backend: "auto", or one of `backends_of("rope")`.

    Returns:
        x.

    Raises:
        InvalidInput: shapes, dtypes or positions do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads and writes rotary_dim elements of each head.
    Source: RoFormer, Su et al. 2021.
    """
    run(ROPE, (x, positions, cos_sin), {"interleaved": interleaved}, backend)
    return x


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """SiLU of the gate times up: the middle of a SwiGLU layer.

    Args:
        gate_up: [num_tokens, 2 * intermediate], gate in the first half; float32, bfloat16 or float16.
        out: [num_tokens, intermediate]; made if None.
        backend: "auto", or one of `backends_of("silu_mul")`.

    Returns:
        out: gate / (1 + exp(-gate)) * up, float32 arithmetic, rounded once.

    Raises:
        InvalidInput: shapes or dtypes do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads gate_up, writes half as much.
    Source: Shazeer 2020 (GLU variants).
    """
    made: Tensor = run(SILU_MUL, (gate_up, MAKE if out is None else out), {}, backend)[1]
    return made


def gelu_mul(gate_up: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """GELU (its tanh form) of the gate times up: the middle of a GeGLU layer.

    Args, Returns, Raises, Cost: as `silu_mul`, with gelu(gate) = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate +
    0.044715 gate^3))).

    Source: Shazeer 2020 (GLU variants); Hendrycks and Gimpel 2016 (GELU).
    """
    made: Tensor = run(GELU_MUL, (gate_up, MAKE if out is None else out), {}, backend)[1]
    return made


def soft_cap(x: Tensor, cap: float, *, backend: str = "auto") -> Tensor:
    """Squash values smoothly into (-cap, cap), in place: x = cap * tanh(x / cap).

    Args:
        x: [num_tokens, hidden] float32, written.
        cap: above 0.
        backend: "auto", or one of `backends_of("soft_cap")`.

    Returns:
        x.

    Raises:
        InvalidInput: x's shape or dtype, or cap, does not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads and writes x once.
    Source: Gemma 2, Gemma Team 2024.
    """
    run(SOFT_CAP, (x,), {"cap": cap}, backend)
    return x
