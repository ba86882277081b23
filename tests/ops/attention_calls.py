# SPDX-License-Identifier: Apache-2.0
"""Calls of paged attention with poison wherever nothing may be read, for the attention tests."""

import os
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pagedserve import _C, ops

NAN = float("nan")
ISAS = [isa.name for isa in _C.supported_isas()]
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn, torch.uint8)
LARGEST_CODE = {torch.int8: 127, torch.float8_e4m3fn: 448, torch.uint8: 7}  # uint8 holds int4, two codes a byte
BAD_PAGES = torch.tensor([-1, 2**31 - 1, -(2**31), 2147480000], dtype=torch.int32)


@dataclass
class Sequences:
    """What sequences hold, before it is laid out in pages."""

    q: list[Tensor]  # of each sequence [q_len, num_q_heads, head_dim]
    k: list[Tensor]  # of each sequence [kv_len, num_kv_heads, head_dim], float32
    v: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    lens: list[int] | None = None  # kv_lens, where they are not those of k: 0 and below

    @property
    def kv_lens(self) -> list[int]:
        return self.lens or [len(k) for k in self.k]


def sequences(
    q_lens: list[int],
    kv_lens: list[int],
    *,
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 64,
    q_dtype: torch.dtype = torch.float32,
    features: tuple[str, ...] = (),
    seed: int = 0,
) -> Sequences:
    """Random sequences. features: any of window, soft_cap, sinks, alibi_slopes, tree_mask (all q_lens the same)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    num_q_heads = num_kv_heads * group_size
    options: dict[str, Any] = {}
    if "window" in features:
        options["window"] = int(torch.randint(1, 400, (1,), generator=random))
    if "soft_cap" in features:
        options["soft_cap"] = 1.5
    if "sinks" in features:
        options["sinks"] = normal(num_q_heads) * 3
    if "alibi_slopes" in features:
        options["alibi_slopes"] = normal(num_q_heads).abs() / 10
    if "tree_mask" in features:
        mask = normal(len(q_lens), q_lens[0], q_lens[0]) > 0
        options["tree_mask"] = mask | torch.eye(q_lens[0], dtype=torch.bool)
    return Sequences(
        [normal(n, num_q_heads, head_dim).to(q_dtype) for n in q_lens],
        [normal(max(n, 0), num_kv_heads, head_dim) for n in kv_lens],
        [normal(max(n, 0), num_kv_heads, head_dim) for n in kv_lens],
        options,
        list(kv_lens),
    )


@dataclass
class Call:
    """The tensors of one call."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    kv_lens: Tensor
    q_lens: list[int]
    options: dict[str, Any]  # scales included

    @property
    def q_starts(self) -> list[int]:
        return torch.tensor([0, *self.q_lens]).cumsum(0).tolist()


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """NaN everywhere; whole numbers have none, their scales have."""
    return torch.full(shape, 127 if dtype in (torch.int8, torch.uint8) else NAN).to(dtype)


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1) / LARGEST_CODE[dtype]
    codes = x / scale[..., None]
    if dtype == torch.uint8:
        pairs = codes.round().unflatten(-1, (-1, 2)) + 8
        return (pairs[..., 0] + 16 * pairs[..., 1]).to(dtype), scale
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale


def lay_out(
    what: Sequences,
    *,
    kv_dtype: torch.dtype = torch.float32,
    page_size: int = 16,
    head_major: bool = False,
    gap: int = 0,
    seed: int = 0,
) -> Call:
    """Puts sequences into shuffled pages among poison. gap: elements of poison behind each row."""
    random = torch.Generator().manual_seed(seed)
    num_kv_heads, head_dim = what.k[0].shape[1:]
    num_pages_of = [-(-len(k) // page_size) for k in what.k]
    num_pages = sum(num_pages_of) + 2
    ids = torch.randperm(num_pages, generator=random)
    bad = torch.randint(len(BAD_PAGES), (len(what.k), max(num_pages_of) + 2), generator=random)
    page_table = BAD_PAGES[bad]

    def pool(dtype: torch.dtype, *row: int) -> Tensor:
        if head_major:
            return poisoned((num_pages, num_kv_heads, page_size, *row), dtype).transpose(1, 2)
        return poisoned((num_pages, page_size, num_kv_heads, *row), dtype)

    items = head_dim // 2 if kv_dtype == torch.uint8 else head_dim
    pages = {name: pool(kv_dtype, items + gap)[..., :items] for name in ("k", "v")}
    scales = {name: pool(torch.float32) for name in ("k", "v")} if kv_dtype in LARGEST_CODE else {}
    for seq, count in enumerate(num_pages_of):
        page_table[seq, :count], ids = ids[:count].int(), ids[count:]
        tokens = torch.arange(len(what.k[seq]))
        page, row = page_table[seq, tokens // page_size].long(), tokens % page_size
        for name, x in (("k", what.k[seq]), ("v", what.v[seq])):
            if scales:
                codes, scales[name][page, row] = quantised(x, kv_dtype)
                pages[name].view(torch.int8)[page, row] = codes.view(torch.int8)
            else:
                pages[name][page, row] = x.to(kv_dtype)
    return Call(
        torch.cat(what.q),
        pages["k"],
        pages["v"],
        page_table,
        torch.tensor(what.kv_lens, dtype=torch.int32),
        [len(q) for q in what.q],
        what.options | {f"{name}_scales": x for name, x in scales.items()},
    )


def run(
    call: Call, *, isa: str = ISAS[-1], num_threads: int = 2, backend: str = "cpu", ragged: bool = False
) -> tuple[Tensor, Tensor]:
    """o and lse; both were NaN. A call with one q_len for all goes by paged_decode, unless ragged."""
    out, lse = torch.full_like(call.q, NAN), torch.full(call.q.shape[:2], NAN)
    operands = (call.q, call.k_pages, call.v_pages, call.page_table, call.kv_lens)
    results = {"out": out, "lse": lse, "backend": backend}
    with mock.patch.dict(os.environ, PAGEDSERVE_CPU_ISA=isa, PAGEDSERVE_THREADS=str(num_threads)):
        if len(set(call.q_lens)) == 1 and call.q_lens[0] and not ragged:
            ops.paged_decode(*operands, q_len=call.q_lens[0], **results, **call.options)
        else:
            starts = torch.tensor(call.q_starts, dtype=torch.int32)
            ops.paged_prefill(*operands, starts, **results, **call.options)
    return out, lse
