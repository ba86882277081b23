# SPDX-License-Identifier: Apache-2.0
"""Projections and embeddings, the definition. A weight is an `ops.Weight`; a dense copy of low-bit ones is kept."""

from typing import Any

import torch
from torch import Tensor

GROUP = 32  # elements that share a scale


def quantise_activations(x: Tensor) -> Tensor:
    """x as the product with q8 and q4 weights sees it: int8 codes times a scale per 32 elements, multiplied out.

    scale = amax / 127 and codes = x / scale rounded to nearest even, both in float32 whatever x is. A scale below the
    smallest normal number gives zeros; an infinity or NaN gives NaN for its whole group.
    """
    groups = x.to(torch.float32).reshape(x.shape[0], x.shape[1] // GROUP, GROUP)
    scale = groups.abs().amax(dim=2, keepdim=True) / 127
    scale = torch.where(torch.isfinite(scale), scale, torch.nan)
    tiny = scale < torch.finfo(torch.float32).tiny
    codes = torch.round(groups / scale).masked_fill(tiny, 0)
    return (codes.to(x.dtype) * scale.masked_fill(tiny, 0).to(x.dtype)).flatten(1)


def linear(x: Tensor, weight: Any, bias: Tensor | None, out: Tensor, accumulate: bool) -> None:
    if weight.format in ("q8", "q4"):
        x = quantise_activations(x)
    dense = weight.values if weight.format == "f32" else weight.packed("reference", lambda w: w.dense())
    product = x @ dense.to(x.dtype).T
    if bias is not None:
        product = product + bias
    out.copy_(out + product if accumulate else product)


def embed(token_ids: Tensor, weight: Any, out: Tensor, scale: float) -> None:
    out.copy_(weight.rows(token_ids) * scale)


def take_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    torch.index_select(x, 0, rows.long(), out=out)
