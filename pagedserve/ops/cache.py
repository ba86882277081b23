# SPDX-License-Identifier: Apache-2.0
"""Writing and moving cached keys and values."""

from __future__ import annotations

from torch import Tensor

from pagedserve.ops.call import run
from pagedserve.specs import SPECS

APPEND_KV, ROPE_APPEND_KV, COPY_PAGES = (SPECS[name] for name in ("append_kv", "rope_append_kv", "copy_pages"))


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


def rope_append_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """All that stands between a layer's QKV projection and its attention: QK-norm, rotation, and the write of pages.

    `rms_norm` of each head where there is a weight, `rope`, then `append_kv`, with nothing rounded between them.

    Args:
        q: [num_tokens, num_q_heads, head_dim], float32, bfloat16 or float16; normed and rotated in place.
        k, v: [num_tokens, num_kv_heads, head_dim], q's dtype; only read: the pages get normed and rotated keys.
        positions: [num_tokens] int32, below max_position.
        cos_sin: [max_position, rotary_dim] float32 as `rope_table` makes it: cosines, then sines.
        k_pages, v_pages, slot_mapping, k_scales, v_scales: as in `append_kv`. A token whose slot is negative is rotated
            in q, and its keys and values are skipped.
        q_norm, k_norm: [head_dim] float32, weights of the norms of queries' and keys' heads; None: no norm.
        eps: added to the norms' mean square.
        interleaved: rotate pairs (2 i, 2 i + 1), as GPT-J does, instead of (i, i + rotary_dim / 2).
        backend: "auto", or one of `backends_of("rope_append_kv")`.

    Returns:
        q.

    Raises:
        InvalidInput: shapes, dtypes, positions or slots do not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads and writes q once; reads k and v once, writes as many elements of pages. On the CPU one kernel of each
        part after the other, and float32 copies of what is not float32.
    Source: Su et al. 2021 (RoFormer); Zhang and Sennrich 2019; QK-norm, Henry et al. 2020.
    """
    tensors = (q, k, v, positions, cos_sin, k_pages, v_pages, slot_mapping, q_norm, k_norm, k_scales, v_scales)
    run(ROPE_APPEND_KV, tensors, {"eps": eps, "interleaved": interleaved}, backend)
    return q


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
