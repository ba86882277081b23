# SPDX-License-Identifier: Apache-2.0
# out = x / sqrt(mean(x^2) + eps) * weight; with a residual: residual += x first, and x is what it then holds
#
#   x, residual, out   [num_tokens, num_heads, hidden]   T     hidden contiguous; out may be x
#   weight             [hidden]                          f32
#
# Work     program = one row; a row of up to BLOCK elements stays in registers, a longer one is read twice
# Traffic  x and out once, residual in and out
# Bound    memory
# Source   Zhang and Sennrich 2019
# Oracle   pagedserve/backends/reference/fused.py::rms_norm

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.operands import Rows, row_offsets


@triton.jit
def _summed(x, residual, columns, mask):
    """x of some columns in float32, after the residual's addition and rounding, which is stored."""
    wide = tl.load(x + columns, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        wide += tl.load(residual + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = wide.to(residual.dtype.element_ty)
        tl.store(residual + columns, rounded, mask=mask)
        wide = rounded.to(tl.float32)
    return wide


@triton.jit
def _normed(wide, factor, weight, out, columns, mask, ACCUMULATE: tl.constexpr):
    made = wide * factor * tl.load(weight + columns, mask=mask, other=0.0)
    if ACCUMULATE:
        made += tl.load(out + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + columns, made.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_heads"])
def rms_norm_kernel(
    x_rows: Rows,
    weight,
    residual,
    residual_token_stride,
    out_rows: Rows,
    num_heads,
    eps,
    HIDDEN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token, head = row // num_heads, row % num_heads
    x = x_rows.base + row_offsets(x_rows, token, head)
    out = out_rows.base + row_offsets(out_rows, token, head)
    if residual is not None:
        residual += token * residual_token_stride
    columns = tl.arange(0, BLOCK)
    if HIDDEN <= BLOCK:
        wide = _summed(x, residual, columns, columns < HIDDEN)
        factor = tl.rsqrt(tl.sum(wide * wide, 0) / HIDDEN + eps)
        _normed(wide, factor, weight, out, columns, columns < HIDDEN, ACCUMULATE)
    else:
        squares = tl.full([BLOCK], 0.0, tl.float32)
        for start in range(0, HIDDEN, BLOCK):
            mask = start + columns < HIDDEN
            wide = _summed(x, residual, start + columns, mask)
            squares += wide * wide
        factor = tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)
        source = x
        if residual is not None:
            source = residual
        for start in range(0, HIDDEN, BLOCK):
            mask = start + columns < HIDDEN
            wide = tl.load(source + start + columns, mask=mask, other=0.0).to(tl.float32)
            _normed(wide, factor, weight, out, start + columns, mask, ACCUMULATE)
