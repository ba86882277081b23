# SPDX-License-Identifier: Apache-2.0
# pages[slot / page_size, slot % page_size] = k, v; a quantised page keeps codes, and amax / largest code as the scale
#
#   k, v                 [num_tokens, num_kv_heads, head_dim]              T
#   k_pages, v_pages     [num_pages, page_size, num_kv_heads, head_dim]    KV    written; int4: head_dim / 2 bytes
#   slot_mapping         [num_tokens]                                      i64   negative: skipped
#   k_scales, v_scales   [num_pages, page_size, num_kv_heads]              f32   written
#
# Work     program = HEADS heads of one token, keys or values
# Traffic  k and v once, in and out
# Bound    memory
# Source   PagedAttention, Kwon et al. 2023
# Oracle   pagedserve/backends/reference/cache.py::append_kv

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.kv_codes import fp8_codes, nearest
from pagedserve.backends.triton.kernels.operands import Pages, Rows, load_rows, row_offsets, store_rows


@triton.jit
def write_heads(
    x,
    slot,
    heads,
    taken,
    pages: Pages,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
):
    """Writes heads of one token into its slot. x: f32 [heads, BLOCK_D], zero beyond head_dim; heads, taken: [heads]."""
    page, row = slot // PAGE_SIZE, slot % PAGE_SIZE
    starts = page * pages.page_stride + row * pages.row_stride + heads * pages.head_stride
    if KIND == "float":
        store_rows(pages.base, starts, taken, x, HEAD_DIM, BLOCK_D)
    else:
        LARGEST: tl.constexpr = 127.0 if KIND == "int8" else (448.0 if KIND == "fp8" else 7.0)
        broken = tl.max((x != x).to(tl.int32), 1) > 0  # a maximum drops NaN
        amax = tl.where(broken, float("nan"), tl.max(tl.abs(x), 1))
        scale = tl.math.div_rn(amax, tl.full(amax.shape, LARGEST, tl.float32))
        scale = tl.where(scale == 0.0, 1.0, scale)
        scale_starts = page * pages.scale_page_stride + row * pages.scale_row_stride + heads * pages.scale_head_stride
        tl.store(pages.scales + scale_starts, scale, mask=taken)
        codes = tl.math.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
        codes = tl.minimum(tl.maximum(codes, -LARGEST), LARGEST)
        if KIND == "fp8":
            store_rows(pages.base, starts, taken, fp8_codes(codes), HEAD_DIM, BLOCK_D)
        elif KIND == "int8":
            store_rows(pages.base, starts, taken, nearest(codes), HEAD_DIM, BLOCK_D)
        else:
            biased = nearest(codes).to(tl.int32) + 8
            even, odd = tl.split(tl.reshape(biased, [x.shape[0], BLOCK_D // 2, 2]))
            store_rows(pages.base, starts, taken, even | (odd << 4), HEAD_DIM // 2, BLOCK_D // 2)


@triton.jit(do_not_specialize=["num_heads"])
def append_kv_kernel(
    k: Rows,
    v: Rows,
    k_pages: Pages,
    v_pages: Pages,
    slot_mapping,
    num_heads,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,
    KIND: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        taken = heads < num_heads
        if tl.program_id(2) == 0:
            x = load_rows(k.base, row_offsets(k, token, heads), taken, HEAD_DIM, BLOCK_D).to(tl.float32)
            write_heads(x, slot, heads, taken, k_pages, PAGE_SIZE, HEAD_DIM, BLOCK_D, KIND)
        else:
            x = load_rows(v.base, row_offsets(v, token, heads), taken, HEAD_DIM, BLOCK_D).to(tl.float32)
            write_heads(x, slot, heads, taken, v_pages, PAGE_SIZE, HEAD_DIM, BLOCK_D, KIND)
