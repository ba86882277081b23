# SPDX-License-Identifier: Apache-2.0
# Tensors as kernels take them: one argument each, of a pointer and its strides in elements
#
#   Rows    [num_tokens, num_heads, head_dim]              head_dim contiguous
#   Pages   [num_pages, page_size, num_kv_heads, head_dim] head_dim contiguous, KV of kv_codes.py; and their scales
#           [num_pages, page_size, num_kv_heads]           f32, or None
#
# Triton makes a parameter of each field; a stride of 1 and a None are compiled in.

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    base: Any
    token_stride: Any
    head_stride: Any


class Pages(NamedTuple):
    base: Any
    page_stride: Any
    row_stride: Any
    head_stride: Any
    scales: Any
    scale_page_stride: Any
    scale_row_stride: Any
    scale_head_stride: Any


@triton.jit
def row_offsets(rows: Rows, token, head):
    """Where heads of tokens start, from rows.base; token: i64."""
    return token * rows.token_stride + head * rows.head_stride


@triton.jit
def load_rows(base, starts, taken, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of base, [rows, BLOCK_D]; zero where not taken and beyond head_dim. starts: [rows] i64; taken: [rows]."""
    column = tl.arange(0, BLOCK_D)
    mask = taken[:, None] & (column < HEAD_DIM)[None, :]
    return tl.load(base + starts[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, starts, taken, x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes rows x, [rows, BLOCK_D], rounded to base's type. starts, taken: as load_rows."""
    column = tl.arange(0, BLOCK_D)
    mask = taken[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(base + starts[:, None] + column[None, :], x.to(base.dtype.element_ty), mask=mask)
