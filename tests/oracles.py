# SPDX-License-Identifier: Apache-2.0
"""Definitions in float64, written without pagedserve: loops over queries and heads, one softmax each."""

import numpy as np
import torch
from torch import Tensor


def gathered(pages: Tensor, scales: Tensor | None, page_ids: Tensor, kv_len: int) -> np.ndarray:
    """A sequence's rows, [kv_len, num_kv_heads, head_dim] float64."""
    tokens = torch.arange(kv_len)
    page, row = page_ids[tokens // pages.shape[1]].long(), tokens % pages.shape[1]
    values = pages[page, row]
    if values.dtype == torch.uint8:  # int4: two elements a byte, the even one in the low half, each its code + 8
        values = torch.stack([values % 16, values // 16], dim=-1).flatten(-2).to(torch.float64) - 8
    values = values.to(torch.float64)
    if scales is not None:
        values = values * scales[page, row].to(torch.float64)[:, :, None]
    return values.numpy()


def visible(kv_len: int, q_len: int, query: int, window: int, tree_mask: Tensor | None) -> np.ndarray:
    """Which keys a query sees, [kv_len] bool."""
    position, key = kv_len - q_len + query, np.arange(kv_len)
    if position < 0:
        return np.zeros(kv_len, dtype=bool)
    seen = key <= position
    if tree_mask is not None:
        for token in range(max(kv_len - q_len, 0), kv_len):
            seen[token] = bool(tree_mask[query, token - (kv_len - q_len)])
    if window > 0:
        seen &= key > position - window
    return seen


def attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: list[int],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """o [num_tokens, num_q_heads, head_dim] and lse [num_tokens, num_q_heads], float64."""
    num_tokens, num_q_heads, head_dim = q.shape
    group_size = num_q_heads // k_pages.shape[2]
    o, lse = np.zeros((num_tokens, num_q_heads, head_dim)), np.full((num_tokens, num_q_heads), -np.inf)
    queries = q.to(torch.float64).numpy()
    for seq, kv_len in enumerate(kv_lens.tolist()):
        q_len = q_starts[seq + 1] - q_starts[seq]
        if kv_len <= 0 or q_len == 0:
            continue
        k = gathered(k_pages, k_scales, page_table[seq], kv_len)
        v = gathered(v_pages, v_scales, page_table[seq], kv_len)
        for query in range(q_len):
            token, position = q_starts[seq] + query, kv_len - q_len + query
            seen = visible(kv_len, q_len, query, window, None if tree_mask is None else tree_mask[seq])
            if not seen.any():
                continue
            keys = np.flatnonzero(seen)
            for head in range(num_q_heads):
                logits = k[keys, head // group_size] @ queries[token, head] * scale
                if soft_cap > 0:
                    logits = soft_cap * np.tanh(logits / soft_cap)
                if alibi_slopes is not None:
                    logits = logits + float(alibi_slopes[head]) * (keys - position)
                terms = logits if sinks is None else np.append(logits, float(sinks[head]))
                total = np.logaddexp.reduce(terms)
                o[token, head] = np.exp(logits - total) @ v[keys, head // group_size]
                lse[token, head] = total
    return o, lse
