# SPDX-License-Identifier: Apache-2.0
"""Attention over pages, the definition: gather a sequence's keys, softmax, weigh its values.

Arithmetic is float32, or float64 for float64 queries. Logits are made in this order:

    logit = scale * q . k;  logit = cap * tanh(logit / cap);  logit += slope * (key - query);  masked: -inf

A sink is one more key with that logit and no value: it stands in the denominator and in lse.
"""

from typing import Any

import torch
from torch import Tensor

from pagedserve.backends.operands import Attention
from pagedserve.backends.reference.cache import unpack_int4


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
    options: Attention,
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


def _over_sequences(starts: list[int], call: Attention) -> None:
    """Sequence s has the queries starts[s] to starts[s + 1]."""
    q, out, lse = call.q, call.out, call.lse
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    page_size = call.k_pages.shape[1]
    for seq, kv_len in enumerate(call.kv_lens.tolist()):
        rows = slice(starts[seq], starts[seq + 1])
        q_len = rows.stop - rows.start
        if q_len == 0:
            continue
        if kv_len <= 0:
            out[rows] = 0
            if lse is not None:
                lse[rows] = -torch.inf
            continue
        page_ids = call.page_table[seq, : -(-kv_len // page_size)].long()
        k = _gather(call.k_pages, call.k_scales, page_ids, kv_len, dtype)
        v = _gather(call.v_pages, call.v_scales, page_ids, kv_len, dtype)
        tree_mask = None if call.tree_mask is None else call.tree_mask[seq]
        visible = _visible(kv_len, q_len, call.window, tree_mask, q.device)
        o, seq_lse = _attend(q[rows].to(dtype), k, v, visible, call)
        out[rows] = o.to(out.dtype)
        if lse is not None:
            lse[rows] = seq_lse.to(lse.dtype)


def paged_decode(*operands: Any) -> None:
    """q_len queries for every sequence: query i stands at position kv_len - q_len + i."""
    call = Attention.of("paged_decode", *operands)
    _over_sequences(list(range(0, (len(call.kv_lens) + 1) * call.q_len, call.q_len)), call)


def paged_prefill(*operands: Any) -> None:
    """Queries q_starts[s] to q_starts[s + 1] are the last positions of sequence s."""
    call = Attention.of("paged_prefill", *operands)
    _over_sequences(call.q_starts.tolist(), call)


def merge_states(o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> None:
    """o = sum_i exp(lse_i - lse) o_i, over the leading axis; states with lse -inf add nothing, whatever they hold."""
    dtype = torch.float64 if o.dtype == torch.float64 else torch.float32
    total = torch.logsumexp(lse.to(dtype), dim=0)  # [num_tokens, num_heads]
    empty = lse == -torch.inf  # [num_states, num_tokens, num_heads]
    weights = torch.exp(lse.to(dtype) - total.masked_fill(total == -torch.inf, 0))
    values = o.to(dtype).masked_fill(empty[..., None], 0)
    out.copy_((weights[..., None] * values).sum(dim=0))
    out_lse.copy_(total)
