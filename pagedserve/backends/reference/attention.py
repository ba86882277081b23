# SPDX-License-Identifier: Apache-2.0
"""Attention over pages, the definition: gather a sequence's keys, softmax, weigh its values.

Arithmetic is float32, or float64 for float64 queries. Logits are made in this order:

    logit = scale * q . k;  logit = cap * tanh(logit / cap);  logit += slope * (key - query);  masked: -inf

A sink is one more key with that logit and no value: it stands in the denominator and in lse.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pagedserve.backends.reference.cache import unpack_int4


class _Options(NamedTuple):
    """What a call may ask for beyond plain attention; as in pagedserve.ops.paged_decode."""

    sinks: Tensor | None
    alibi_slopes: Tensor | None
    k_scales: Tensor | None
    v_scales: Tensor | None
    scale: float
    window: int
    soft_cap: float


def _gather(pages: Tensor, scales: Tensor | None, page_ids: Tensor, kv_len: int, dtype: torch.dtype) -> Tensor:
    """A sequence's cached rows, [kv_len, num_kv_heads, head_dim]."""
    rows = pages[page_ids].flatten(0, 1)[:kv_len]
    rows = (unpack_int4(rows) if rows.dtype == torch.uint8 else rows).to(dtype)
    if scales is None:
        return rows
    return rows * scales[page_ids].flatten(0, 1)[:kv_len, :, None].to(dtype)


def _visible(kv_len: int, q_len: int, window: int, tree_mask: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query sees, [q_len, kv_len] bool."""
    query = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]  # positions; negative ones see nothing
    key = torch.arange(kv_len, device=device)[None, :]
    visible = (key <= query) & (query >= 0)
    if tree_mask is not None:
        first_new = max(kv_len - q_len, 0)
        visible[:, :first_new] = True
        visible[:, first_new:] = tree_mask[:, q_len - (kv_len - first_new) :]
        visible &= query >= 0
    if window > 0:
        visible &= key > query - window
    return visible


def _attend(
    q: Tensor,  # [q_len, num_q_heads, head_dim]
    k: Tensor,  # [kv_len, num_kv_heads, head_dim]
    v: Tensor,  # [kv_len, num_kv_heads, head_dim]
    visible: Tensor,  # [q_len, kv_len]
    options: _Options,
) -> tuple[Tensor, Tensor]:
    """o [q_len, num_q_heads, head_dim] and lse [q_len, num_q_heads] of one sequence."""
    q_len, num_q_heads, head_dim = q.shape
    kv_len, num_kv_heads, _ = k.shape
    grouped = q.view(q_len, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    logits = torch.einsum("qhgd,khd->hgqk", grouped, k).reshape(num_q_heads, q_len, kv_len) * options.scale
    if options.soft_cap > 0:
        logits = options.soft_cap * torch.tanh(logits / options.soft_cap)
    if options.alibi_slopes is not None:
        query = torch.arange(kv_len - q_len, kv_len, device=q.device)[:, None]
        key = torch.arange(kv_len, device=q.device)[None, :]
        logits = logits + options.alibi_slopes.to(q.dtype)[:, None, None] * (key - query)
    logits = logits.masked_fill(~visible, -torch.inf)
    terms = logits
    if options.sinks is not None:
        sink = options.sinks.to(q.dtype)[:, None, None].expand(num_q_heads, q_len, 1)
        terms = torch.cat([logits, sink], dim=2)
    lse = torch.logsumexp(terms, dim=2)  # [num_q_heads, q_len]
    lse = lse.masked_fill(~visible.any(dim=1), -torch.inf)
    weights = torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[:, :, None])
    weights = weights.view(num_kv_heads, num_q_heads // num_kv_heads, q_len, kv_len)
    # A key nobody sees adds nothing, whatever its value holds.
    v = torch.where(visible.any(dim=0)[:, None, None], v, 0)
    o = torch.einsum("hgqk,khd->qhgd", weights, v).reshape(q_len, num_q_heads, head_dim)
    return o, lse.T


def _over_sequences(
    starts: list[int],
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    tree_mask: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    options: _Options,
) -> None:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    page_size = k_pages.shape[1]
    for seq, kv_len in enumerate(kv_lens.tolist()):
        rows = slice(starts[seq], starts[seq + 1])
        q_len = rows.stop - rows.start
        if q_len == 0:
            continue
        if kv_len <= 0:
            out[rows] = 0
            if lse is not None:
                lse[rows] = -torch.inf
            continue
        page_ids = page_table[seq, : -(-kv_len // page_size)].long()
        k = _gather(k_pages, options.k_scales, page_ids, kv_len, dtype)
        v = _gather(v_pages, options.v_scales, page_ids, kv_len, dtype)
        visible = _visible(kv_len, q_len, options.window, None if tree_mask is None else tree_mask[seq], q.device)
        o, seq_lse = _attend(q[rows].to(dtype), k, v, visible, options)
        out[rows] = o.to(out.dtype)
        if lse is not None:
            lse[rows] = seq_lse.to(lse.dtype)


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    tree_mask: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    workspace: Tensor | None,
    q_len: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> None:
    """q_len queries for every sequence: query i stands at position kv_len - q_len + i."""
    starts = list(range(0, (len(kv_lens) + 1) * q_len, q_len))
    options = _Options(sinks, alibi_slopes, k_scales, v_scales, scale, window, soft_cap)
    _over_sequences(starts, q, k_pages, v_pages, page_table, kv_lens, tree_mask, out, lse, options)


def paged_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    scale: float,
    window: int,
    soft_cap: float,
) -> None:
    """Queries q_starts[s] to q_starts[s + 1] are the last positions of sequence s."""
    options = _Options(sinks, alibi_slopes, k_scales, v_scales, scale, window, soft_cap)
    _over_sequences(q_starts.tolist(), q, k_pages, v_pages, page_table, kv_lens, None, out, lse, options)


def merge_states(o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> None:
    """o = sum_i exp(lse_i - lse) o_i, over the leading axis; states with lse -inf add nothing, whatever they hold."""
    dtype = torch.float64 if o.dtype == torch.float64 else torch.float32
    total = torch.logsumexp(lse.to(dtype), dim=0)  # [num_tokens, num_heads]
    empty = lse == -torch.inf  # [num_states, num_tokens, num_heads]
    weights = torch.exp(lse.to(dtype) - total.masked_fill(total == -torch.inf, 0))
    values = o.to(dtype).masked_fill(empty[..., None], 0)
    out.copy_((weights[..., None] * values).sum(dim=0))
    out_lse.copy_(total)
