# SPDX-License-Identifier: Apache-2.0
"""Attention over paged keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops.call import Scalar, run
from pagedserve.ops.check import MAKE
from pagedserve.specs import SPECS

PAGED_DECODE, PAGED_PREFILL, MERGE_STATES = (SPECS[name] for name in ("paged_decode", "paged_prefill", "merge_states"))


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    *,
    q_len: int = 1,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend q_len query tokens of each sequence to that sequence's cached keys and values.

    Query i of a sequence stands at position kv_len - q_len + i and sees the keys at or before it. Its own
    key and value are in the pages already.

    Args:
        q: [num_seqs * q_len, num_q_heads, head_dim], float32, bfloat16 or float16 (float64: reference only).
        k_pages, v_pages: [num_pages, page_size, num_kv_heads, head_dim]; a float dtype, or int8 or float8_e4m3fn
            with scales, or int4 with scales: uint8 [num_pages, page_size, num_kv_heads, head_dim / 2], code + 8 in
            four bits, the even element's the low ones. Any strides, head_dim contiguous. num_q_heads is a multiple of
            num_kv_heads; head_dim a multiple of 8 up to 256.
        page_table: [num_seqs, max_pages] int32. Page i holds tokens [i * page_size, (i + 1) * page_size). What stands
            behind kv_len is never read.
        kv_lens: [num_seqs] int32, tokens, the queries' own included. 0 or below: the row is empty.
        q_len: queries of each sequence, for speculative verification.
        scale: multiplies q . k; default head_dim ** -0.5.
        window: keys a query sees, itself included; None, 0 or below: all.
        soft_cap: logit = soft_cap * tanh(logit / soft_cap), before ALiBi and masks; 0: off.
        sinks: [num_q_heads] float32, the logit of one more key with no value; it counts in lse.
        alibi_slopes: [num_q_heads] float32; adds slope * (key - query) to the logit.
        tree_mask: [num_seqs, q_len, q_len] bool: query i sees new key j. Earlier keys are all seen. None: causal.
        k_scales, v_scales: [num_pages, page_size, num_kv_heads] float32: value = code * scale.
        out: like q, sharing no memory with it; made if None.
        lse: [num_seqs * q_len, num_q_heads] float32; made if None and return_lse.
        workspace: [workspace_bytes] uint8 in which `plan_decode` has planned this call, for backend "cuda": made and
            planned if None, which a CUDA graph cannot hold and a hot path should not pay for. Others do not look at it.
        backend: "auto", or one of `backends_of("paged_decode")`. A named backend never falls back.

    Returns:
        o like q, or (o, lse) with return_lse. lse is natural log. A query that sees no key has o = 0, lse = -inf.

    Raises:
        InvalidInput: shapes, dtypes, lengths or page ids do not fit; the message names the axis and both sizes.
        BackendUnavailable: the named backend cannot run this call; the message lists why.

    Cost: reads 2 * kv_lens.sum() * num_kv_heads * head_dim elements; 4 * num_q_heads * head_dim flops a visible pair.
    Source: PagedAttention, Kwon et al. 2023, section 4; GQA, Ainslie et al. 2023; ALiBi, Press et al. 2022; sinks,
    Xiao et al. 2024.
    """
    if not isinstance(q_len, int) or q_len < 1:
        raise InvalidInput(f"paged_decode: q_len is {q_len!r}; give a whole number, 1 or above")
    operands = (
        q, k_pages, v_pages, page_table, kv_lens, tree_mask, sinks, alibi_slopes, k_scales, v_scales,
        MAKE if out is None else out, MAKE if lse is None and return_lse else lse, workspace,
    )  # fmt: skip
    scalars: dict[str, Scalar] = {"q_len": q_len, **_options(q, scale, window, soft_cap)}
    *_, made_out, made_lse, _ = run(PAGED_DECODE, operands, scalars, backend, q_len=q_len)
    return (made_out, made_lse) if return_lse else made_out


def paged_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend ragged queries, the last tokens of each sequence, to that sequence's cached keys and values.

    Sequence s has the queries q_starts[s] to q_starts[s + 1]; query i of its q_len stands at position
    kv_len - q_len + i and sees the keys at or before it: a whole prompt, a chunk behind a cached prefix, or a
    decode of one.

    Args:
        q: [num_tokens, num_q_heads, head_dim]. Tokens before q_starts[0] or from q_starts[-1] on belong to nobody:
            their rows of out and lse are left as they are.
        q_starts: [num_seqs + 1] int32, never falling. A sequence without queries takes no part: its length and pages
            are not looked at.
        k_pages, v_pages, page_table, kv_lens, scale, window, soft_cap, sinks, alibi_slopes, k_scales, v_scales,
            out, lse, return_lse, backend: as in `paged_decode`.

    Returns:
        o like q, or (o, lse) with return_lse.

    Raises:
        InvalidInput: shapes, dtypes, lengths or page ids do not fit; the message names the axis and both sizes.
        BackendUnavailable: the named backend cannot run this call; the message lists why.

    Cost: reads 2 * kv_lens.sum() * num_kv_heads * head_dim elements; 4 * num_q_heads * head_dim flops a visible pair.
    Source: PagedAttention, Kwon et al. 2023; chunked prefill, Agrawal et al. 2024 (Sarathi-Serve).
    """
    operands = (
        q, k_pages, v_pages, page_table, kv_lens, q_starts, sinks, alibi_slopes, k_scales, v_scales,
        MAKE if out is None else out, MAKE if lse is None and return_lse else lse,
    )  # fmt: skip
    made = run(PAGED_PREFILL, operands, _options(q, scale, window, soft_cap), backend)
    return made[-2:] if return_lse else made[-2]


def _options(q: Tensor, scale: float | None, window: int | None, soft_cap: float) -> dict[str, Scalar]:
    if scale is None:
        scale = q.shape[-1] ** -0.5 if isinstance(q, Tensor) and q.dim() and q.shape[-1] else 1.0
    if window is None or (isinstance(window, int) and window < 0):
        window = 0
    return {"scale": scale, "window": window, "soft_cap": soft_cap}


def merge_states(
    o: Tensor,
    lse: Tensor,
    *,
    lse_base: str = "e",
    out: Tensor | None = None,
    out_lse: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Merge attention over parts of a sequence's keys into attention over all of them.

    Args:
        o: [num_states, num_tokens, num_heads, head_dim], the parts' results, contiguous.
        lse: [num_states, num_tokens, num_heads] float32, natural log. -inf: that part saw no key.
        lse_base: "e"; states in base 2, as FlashInfer keeps them, go through `lse_from_base2` first.
        out: [num_tokens, num_heads, head_dim]; out_lse: [num_tokens, num_heads]; made if None.
        backend: "auto", or one of `backends_of("merge_states")`.

    Returns:
        (o, lse): o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i), added in the order of the states.

    Raises:
        InvalidInput: shapes or dtypes do not fit, or lse_base is not "e".
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads o once.
    Source: Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding).
    """
    if lse_base != "e":
        raise InvalidInput(
            f"merge_states: lse_base is {lse_base!r}; states are merged in natural log: "
            f"convert base 2 with ops.lse_from_base2(lse) and pass lse_base='e'"
        )
    operands = (o, lse, MAKE if out is None else out, MAKE if out_lse is None else out_lse)
    made = run(MERGE_STATES, operands, {}, backend)
    return made[2], made[3]


def lse_from_base2(lse: Tensor) -> Tensor:
    """Log-sum-exp in base 2 (log2 of the sum of 2^logit) as the natural log that pagedserve keeps: times ln 2."""
    return torch.mul(lse, math.log(2.0))
