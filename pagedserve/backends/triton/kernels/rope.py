# SPDX-License-Identifier: Apache-2.0
# (a, b) = (a cos - b sin, b cos + a sin) for each pair of a head's first rotary_dim elements, in place
#
#   x           [num_tokens, num_heads, head_dim]   T     written
#   positions   [num_tokens]                        i32
#   cos_sin     [max_position, rotary_dim]          f32   cosines, then sines
#
# Work     program = HEADS heads of one token; pairs are (i, i + rotary_dim / 2), or (2 i, 2 i + 1) where interleaved
# Traffic  rotary_dim elements of each head, in and out
# Bound    memory
# Source   RoFormer, Su et al. 2021
# Oracle   pagedserve/backends/reference/fused.py::rope

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.operands import Rows, row_offsets


@triton.jit
def rotated(a, b, cos, sin):
    return a * cos - b * sin, b * cos + a * sin


@triton.jit(do_not_specialize=["num_heads"])
def rope_kernel(
    x: Rows,
    positions,
    cos_sin,
    num_heads,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = ROTARY_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, BLOCK)
    table = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM + pair
    cos = tl.load(table, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(table + HALF, mask=pair < HALF, other=0.0)[None, :]
    if INTERLEAVED:
        first, apart = 2 * pair, 1
    else:
        first, apart = pair, HALF
    place = x.base + row_offsets(x, token, heads)[:, None] + first[None, :]
    mask = (heads < num_heads)[:, None] & (pair < HALF)[None, :]
    a = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(place + apart, mask=mask, other=0.0).to(tl.float32)
    c, d = rotated(a, b, cos, sin)
    tl.store(place, c.to(x.base.dtype.element_ty), mask=mask)
    tl.store(place + apart, d.to(x.base.dtype.element_ty), mask=mask)
