# SPDX-License-Identifier: Apache-2.0
"""The launches a model makes, on tensors of no contents: what to compile ahead of time, to tune and to hold to budgets.

Kernels are compiled for dtypes, head sizes, page size and features, not for numbers of sequences, tokens or pages, so a
few tokens stand for any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pagedserve.backends.operands import AppendKv, Attention, RopeAppendKv, Sample
from pagedserve.backends.triton import attention, cache, fused, sampling
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import Target
from pagedserve.errors import InvalidInput

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int4": torch.uint8,
}
FEATURES = ("window", "soft_cap", "sinks", "alibi_slopes", "tree_mask")
NUM_TOKENS = 4  # of a batch that stands for any


@dataclass(frozen=True)
class ModelShape:
    """What kernels are compiled for. The defaults are an 8-billion Llama's."""

    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16
    hidden: int = 4096
    intermediate: int = 14336
    vocab_size: int = 128256
    dtype: str = "bfloat16"
    kv: str = "bfloat16"
    q_len: int = 1
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, given, known in (("dtype", self.dtype, tuple(DTYPES)[:3]), ("kv", self.kv, tuple(DTYPES))):
            if given not in known:
                raise InvalidInput(f"{name} is {given!r}; choose from {', '.join(known)}")
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise InvalidInput(f"there is no feature {sorted(unknown)[0]!r}; choose from {', '.join(FEATURES)}")

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPES[self.dtype])

    def pages(self) -> tuple[Tensor, Tensor | None]:
        """Three pages of keys or values, and their scales."""
        width = self.head_dim // 2 if self.kv == "int4" else self.head_dim
        rows = (3, self.page_size, self.num_kv_heads)
        pages = torch.empty((*rows, width), dtype=DTYPES[self.kv])
        return pages, None if pages.is_floating_point() and pages.element_size() > 1 else torch.empty(rows)


def _attention(shape: ModelShape, num_tokens: int) -> dict[str, Any]:
    features, (pages, scales) = shape.features, shape.pages()
    per_head = torch.empty(shape.num_q_heads)
    return {
        "q": shape.empty(num_tokens, shape.num_q_heads, shape.head_dim),
        "k_pages": pages,
        "v_pages": pages,
        "page_table": torch.empty((NUM_TOKENS, 4096), dtype=torch.int32),
        "kv_lens": torch.empty(NUM_TOKENS, dtype=torch.int32),
        "sinks": per_head if "sinks" in features else None,
        "alibi_slopes": per_head if "alibi_slopes" in features else None,
        "k_scales": scales,
        "v_scales": scales,
        "out": shape.empty(num_tokens, shape.num_q_heads, shape.head_dim),
        "lse": torch.empty(num_tokens, shape.num_q_heads),
        "scale": shape.head_dim**-0.5,
        "window": 1024 if "window" in features else 0,
        "soft_cap": 30.0 if "soft_cap" in features else 0.0,
    }


def paged_decode(target: Target, shape: ModelShape) -> list[Launch]:
    q_len = shape.q_len
    mask = torch.empty((NUM_TOKENS, q_len, q_len), dtype=torch.bool) if "tree_mask" in shape.features else None
    call = Attention(tree_mask=mask, q_len=q_len, **_attention(shape, NUM_TOKENS * q_len))
    return attention.paged_decode(target, call)


def paged_prefill(target: Target, shape: ModelShape) -> list[Launch]:
    starts = torch.empty(NUM_TOKENS + 1, dtype=torch.int32)
    return attention.paged_prefill(target, Attention(q_starts=starts, **_attention(shape, NUM_TOKENS)))


def merge_states(target: Target, shape: ModelShape) -> list[Launch]:
    heads = shape.num_q_heads
    o, lse = shape.empty(2, NUM_TOKENS, heads, shape.head_dim), torch.empty(2, NUM_TOKENS, heads)
    return attention.merge_states(target, o, lse, o[0].clone(), lse[0].clone())


def append_kv(target: Target, shape: ModelShape) -> list[Launch]:
    rows = shape.empty(NUM_TOKENS, shape.num_kv_heads, shape.head_dim)
    pages, scales = shape.pages()
    slots = torch.empty(NUM_TOKENS, dtype=torch.int64)
    call = AppendKv(k=rows, v=rows, k_pages=pages, v_pages=pages, slot_mapping=slots, k_scales=scales, v_scales=scales)
    return cache.append_kv(target, call)


def rope_append_kv(target: Target, shape: ModelShape) -> list[Launch]:
    rows = shape.empty(NUM_TOKENS, shape.num_kv_heads, shape.head_dim)
    pages, scales = shape.pages()
    norm = torch.empty(shape.head_dim)
    call = RopeAppendKv(
        q=shape.empty(NUM_TOKENS, shape.num_q_heads, shape.head_dim),
        k=rows,
        v=rows,
        positions=torch.empty(NUM_TOKENS, dtype=torch.int32),
        cos_sin=torch.empty(64, shape.head_dim),
        k_pages=pages,
        v_pages=pages,
        slot_mapping=torch.empty(NUM_TOKENS, dtype=torch.int64),
        k_scales=scales,
        v_scales=scales,
        eps=1e-6,
        interleaved=False,
    )
    plain = cache.rope_append_kv(target, call)
    return plain + cache.rope_append_kv(target, replace(call, q_norm=norm, k_norm=norm))


def rms_norm(target: Target, shape: ModelShape) -> list[Launch]:
    x = shape.empty(NUM_TOKENS, 1, shape.hidden)
    weight = torch.empty(shape.hidden)
    plain = fused.rms_norm(target, x, weight, None, x, 1e-6, False)
    return plain + fused.rms_norm(target, x, weight, shape.empty(*x.shape), x, 1e-6, False)


def rope(target: Target, shape: ModelShape) -> list[Launch]:
    x = shape.empty(NUM_TOKENS, shape.num_q_heads, shape.head_dim)
    return fused.rope(target, x, torch.empty(NUM_TOKENS, dtype=torch.int32), torch.empty(64, shape.head_dim), False)


def _act_mul(build: Callable[..., list[Launch]]) -> Callable[[Target, ModelShape], list[Launch]]:
    def launches(target: Target, shape: ModelShape) -> list[Launch]:
        gate_up = shape.empty(NUM_TOKENS, 2 * shape.intermediate)
        return build(target, gate_up, shape.empty(NUM_TOKENS, shape.intermediate))

    return launches


def sample(target: Target, shape: ModelShape) -> list[Launch]:
    def rows(dtype: torch.dtype = torch.float32, num_rows: int = NUM_TOKENS) -> Tensor:
        return torch.empty(num_rows, dtype=dtype)

    logits = torch.empty(NUM_TOKENS, shape.vocab_size)
    params = (rows(), rows(torch.int32), *(rows() for _ in range(5)), rows(torch.int64), rows(torch.int64))
    history = (rows(torch.int32), rows(torch.int32, NUM_TOKENS + 1), rows(torch.int32))
    top = (torch.empty((NUM_TOKENS, 5), dtype=torch.int32), torch.empty(NUM_TOKENS, 5))
    results = (rows(torch.int32), rows(), *top)
    return sampling.sample(target, Sample.of("sample", logits, *params, *history, *results))


OPS: dict[str, Callable[[Target, ModelShape], list[Launch]]] = {
    "paged_decode": paged_decode,
    "paged_prefill": paged_prefill,
    "merge_states": merge_states,
    "append_kv": append_kv,
    "rope_append_kv": rope_append_kv,
    "rms_norm": rms_norm,
    "rope": rope,
    "silu_mul": _act_mul(fused.silu_mul),
    "gelu_mul": _act_mul(fused.gelu_mul),
    "sample": sample,
}
