# SPDX-License-Identifier: Apache-2.0
"""Writing and moving cached keys and values."""

from __future__ import annotations

from torch import Tensor

from pagedserve.ops.call import run
from pagedserve.specs import SPECS

APPEND_KV, COPY_PAGES = SPECS["append_kv"], SPECS["copy_pages"]


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Write keys and values of new tokens into their pages, quantising where the pages are int8, float8 or int4.

    Args:
        k, v: [num_tokens, num_kv_heads, head_dim], float32, bfloat16 or float16.
        k_pages, v_pages: [num_pages, page_size, num_kv_heads, head_dim], written; a float dtype, int8, float8_e4m3fn,
            or int4: uint8 [num_pages, page_size, num_kv_heads, head_dim / 2] (see `paged_decode`).
        slot_mapping: [num_tokens] int64. Slot page * page_size + row; negative: the token is skipped. No slot twice.
        k_scales, v_scales: [num_pages, page_size, num_kv_heads] float32, written; with int8, float8 and int4 pages
            only: amax / 127, amax / 448 or amax / 7 of a token's head, 1 where amax is 0.
        backend: "auto", or one of `backends_of("append_kv")`.

    Raises:
        InvalidInput: shapes, dtypes or slots do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads and writes num_tokens * num_kv_heads * head_dim elements twice.
    Source: PagedAttention, Kwon et al. 2023.
    """
    run(APPEND_KV, (k, v, k_pages, v_pages, slot_mapping, k_scales, v_scales), {}, backend)


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor, *, backend: str = "auto") -> None:
    """Copy whole pages: dst[dst_pages[i]] = src[src_pages[i]], one after the other.

    Args:
        src, dst: [num_pages, ...] of one dtype and page shape, each page contiguous, written in dst. The same tensor
            may be both.
        src_pages, dst_pages: [num_copies] int64 page ids.
        backend: "auto", or one of `backends_of("copy_pages")`.

    Raises:
        InvalidInput: pages differ in shape or dtype, or an id is outside its pool.
        BackendUnavailable: the named backend cannot run this call.

    Cost: moves num_copies pages.
    """
    run(COPY_PAGES, (src, dst, src_pages, dst_pages), {}, backend)
