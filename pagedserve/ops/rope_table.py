# SPDX-License-Identifier: Apache-2.0
"""The cosines and sines of `rope`, with the scalings that stretch a model's context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput

SUPPORTED = ("default", "linear", "llama3", "yarn")


def rope_table(
    rotary_dim: int,
    max_position: int,
    *,
    theta: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    divisors: Sequence[float] | None = None,
) -> Tensor:
    """The table that `rope` reads: cosines and sines of position * theta ** (-2 i / rotary_dim).

    Args:
        rotary_dim: elements of a head that are rotated, even.
        max_position: number of positions.
        theta: base of the frequencies.
        scaling: as a model's configuration gives it, by "rope_type"; None or "default": none.
            linear: "factor".
            llama3: "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings".
            yarn: "factor", "original_max_position_embeddings", and optionally "beta_fast", "beta_slow",
                "attention_factor", "mscale", "mscale_all_dim", "truncate".
        divisors: [rotary_dim / 2] what each frequency is divided by, where a file gives the scaling that way.

    Returns:
        [max_position, rotary_dim] float32, cosines in the first half, computed in float64.

    Raises:
        InvalidInput: a size or a scaling is not supported, or lacks a number.

    Source: RoFormer, Su et al. 2021; linear, Chen et al. 2023; YaRN, Peng et al. 2023; Llama 3.1's own scaling.
    """
    if not isinstance(rotary_dim, int) or rotary_dim < 2 or rotary_dim % 2:
        raise InvalidInput(f"rope_table: rotary_dim is {rotary_dim!r}; give an even number, 2 or above")
    if not isinstance(max_position, int) or not 1 <= max_position < 2**31:
        raise InvalidInput(f"rope_table: max_position is {max_position!r}; give a whole number from 1 to {2**31 - 1}")
    if not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise InvalidInput(f"rope_table: theta is {theta!r}; give a finite number above 0")
    if not (scaling is None or isinstance(scaling, Mapping)):
        raise InvalidInput(f"rope_table: scaling is a {type(scaling).__name__}; give a mapping, or None")
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    frequencies = theta**-exponents  # [rotary_dim / 2]
    attention_factor = 1.0
    kind = "default" if scaling is None else str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind not in SUPPORTED:
        raise InvalidInput(
            f"rope_table: rope scaling {kind!r} is not supported; supported: {', '.join(SUPPORTED)}"
            + (
                "; a dynamic table changes with the length: choose a fixed factor with yarn"
                if kind == "dynamic"
                else ""
            )
        )
    if scaling is not None and kind == "linear":
        frequencies = frequencies / _number(scaling, "factor")
    elif scaling is not None and kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif scaling is not None and kind == "yarn":
        frequencies, attention_factor = _yarn(frequencies, scaling, rotary_dim, theta)
    if divisors is not None:
        if len(divisors) != len(frequencies) or not all(0 < divisor < math.inf for divisor in divisors):
            raise InvalidInput(
                f"rope_table: {len(divisors)} divisors for a rotary_dim of {rotary_dim}; "
                f"give {len(frequencies)} finite numbers above 0"
            )
        frequencies = frequencies / torch.tensor(divisors, dtype=torch.float64)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return (torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor).to(torch.float32)


def _number(scaling: Mapping[str, Any], name: str) -> float:
    value = scaling.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInput(f"rope_table: {name} of the rope scaling is {value!r}; give a finite number above 0")
    return float(value)


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Wavelengths beyond the trained context are stretched by the factor, short ones kept, those between blended."""
    factor, low, high = (_number(scaling, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise InvalidInput(f"rope_table: high_freq_factor {high} must be above low_freq_factor {low}")
    turns = _number(scaling, "original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched, 1: kept
    return kept * frequencies + (1 - kept) * frequencies / factor


def _yarn(frequencies: Tensor, scaling: Mapping[str, Any], rotary_dim: int, theta: float) -> tuple[Tensor, float]:
    """Frequencies that turn often over the trained context are kept, slow ones stretched; and cos, sin's factor."""
    factor, trained = _number(scaling, "factor"), _number(scaling, "original_max_position_embeddings")

    if theta <= 1:
        raise InvalidInput(f"rope_table: theta is {theta} with yarn scaling, whose formula needs it above 1")

    def pair_of(turns: float) -> float:
        pair = rotary_dim * math.log(max(trained / (turns * 2 * math.pi), 1e-300)) / (2 * math.log(theta))
        return min(max(pair, -1.0), rotary_dim)  # beyond either all pairs are on one side

    def given(name: str, default: float) -> float:
        return default if scaling.get(name) is None else _number(scaling, name)

    first, last = pair_of(given("beta_fast", 32.0)), pair_of(given("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    pairs = torch.arange(len(frequencies), dtype=torch.float64)
    stretched = ((pairs - first) / (last - first if last != first else 0.001)).clamp(0, 1)
    frequencies = stretched * frequencies / factor + (1 - stretched) * frequencies

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return frequencies, _number(scaling, "attention_factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return frequencies, magnitude(_number(scaling, "mscale")) / magnitude(_number(scaling, "mscale_all_dim"))
    return frequencies, magnitude(1.0)
