# SPDX-License-Identifier: Apache-2.0
"""Projections, embeddings, and the choice of rows between them."""

from __future__ import annotations

from torch import Tensor

from pagedserve.ops.call import run
from pagedserve.ops.check import MAKE
from pagedserve.ops.weight import Weight
from pagedserve.specs import SPECS

LINEAR, EMBED, TAKE_ROWS = SPECS["linear"], SPECS["embed"], SPECS["take_rows"]


def linear(
    x: Tensor,
    weight: Weight,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Project rows: out = x W^T (+ bias) (+ out).

    Args:
        x: [num_tokens, in_features] float32. With q8 and q4 weights each 32 elements are rounded to int8 first
            (scale = amax / 127, nearest even): that is part of the definition.
        weight: [out_features, in_features], an `ops.Weight`.
        bias: [out_features] float32.
        accumulate: add to what out holds; out is required.
        out: [num_tokens, out_features] float32, sharing no memory with x; made if None.
        backend: "auto", or one of `backends_of("linear")`.

    Returns:
        out.

    Raises:
        InvalidInput: shapes or dtypes do not fit; the message names the axis and both sizes.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads the weight once a call; 2 * num_tokens * in_features * out_features flops.
    """
    given = MAKE if out is None and not accumulate else out
    made: Tensor = run(LINEAR, (x, weight, bias, given), {"accumulate": accumulate}, backend)[3]
    return made


def embed(
    token_ids: Tensor, weight: Weight, *, scale: float = 1.0, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Rows of an embedding: out[t] = scale * weight[token_ids[t]].

    Args:
        token_ids: [num_tokens] int32, below vocab_size.
        weight: [vocab_size, hidden], an `ops.Weight`.
        scale: multiplies every element.
        out: [num_tokens, hidden] float32; made if None.
        backend: "auto", or one of `backends_of("embed")`.

    Returns:
        out.

    Raises:
        InvalidInput: shapes, dtypes or token ids do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads num_tokens rows of the weight.
    """
    made: Tensor = run(EMBED, (token_ids, weight, MAKE if out is None else out), {"scale": scale}, backend)[2]
    return made


def take_rows(x: Tensor, rows: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Chosen rows: out[r] = x[rows[r]].

    Args:
        x: [num_tokens, hidden] float32.
        rows: [num_rows] int32, below num_tokens.
        out: [num_rows, hidden], sharing no memory with x; made if None.
        backend: "auto", or one of `backends_of("take_rows")`.

    Returns:
        out.

    Raises:
        InvalidInput: shapes, dtypes or rows do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: moves num_rows * hidden elements.
    """
    made: Tensor = run(TAKE_ROWS, (x, rows, MAKE if out is None else out), {}, backend)[2]
    return made
