# SPDX-License-Identifier: Apache-2.0
"""Calls of paged attention with poison wherever nothing may be read, for the attention tests."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pagedserve import _C

NAN, INF = float("nan"), float("inf")
DTYPES = {
    torch.float32: _C.DType.f32,
    torch.bfloat16: _C.DType.bf16,
    torch.float16: _C.DType.f16,
    torch.int8: _C.DType.i8,
    torch.float8_e4m3fn: _C.DType.f8e4m3,
}
LARGEST_CODE = {torch.int8: 127, torch.float8_e4m3fn: 448}
ISAS = _C.supported_isas()
TEAMS = {num_threads: _C.Team(num_threads) for num_threads in (1, 2, 3)}
BAD_PAGE_IDS = (-1, 2**31 - 1, -(2**31), 2147480000)


@dataclass
class Sequences:
    """What sequences hold, before it is laid out in pages: every test's ground truth."""

    q: Tensor  # [num_tokens, num_q_heads, head_dim]
    k: list[Tensor]  # of each sequence [kv_len, num_kv_heads, head_dim], float32
    v: list[Tensor]
    q_lens: list[int]
    kv_lens: list[int]  # 0 and below: empty
    options: dict[str, Any] = field(default_factory=dict)  # scale, window, soft_cap, sinks, alibi_slopes, tree_mask

    @property
    def q_starts(self) -> list[int]:
        return torch.tensor([0, *self.q_lens]).cumsum(0).tolist()


def sequences(
    q_lens: list[int],
    kv_lens: list[int],
    *,
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 64,
    q_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    features: tuple[str, ...] = (),
) -> Sequences:
    """Random sequences. features: any of window, soft_cap, sinks, alibi, tree."""
    random = torch.Generator().manual_seed(seed)
    num_q_heads = num_kv_heads * group_size
    q = torch.randn(sum(q_lens), num_q_heads, head_dim, generator=random).to(q_dtype)
    k = [torch.randn(max(n, 0), num_kv_heads, head_dim, generator=random) for n in kv_lens]
    v = [torch.randn(max(n, 0), num_kv_heads, head_dim, generator=random) for n in kv_lens]
    options: dict[str, Any] = {"scale": head_dim**-0.5}
    if "window" in features:
        options["window"] = int(torch.randint(1, 400, (1,), generator=random))
    if "soft_cap" in features:
        options["soft_cap"] = 1.5
    if "sinks" in features:
        options["sinks"] = torch.randn(num_q_heads, generator=random) * 3
    if "alibi" in features:
        options["alibi_slopes"] = torch.rand(num_q_heads, generator=random) * 0.1
    if "tree" in features:
        q_len = q_lens[0]
        mask = torch.rand(len(q_lens), q_len, q_len, generator=random) < 0.5
        options["tree_mask"] = mask | torch.eye(q_len, dtype=torch.bool)
    return Sequences(q, k, v, q_lens, kv_lens, options)


@dataclass
class Call:
    """Tensors of one call."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    kv_lens: Tensor
    q_starts: list[int]
    q_len: int  # 0: ragged
    options: dict[str, Any]
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    def oracle_options(self) -> dict[str, Any]:
        return self.options | {"k_scales": self.k_scales, "v_scales": self.v_scales}


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of NaN, or of the largest code where there is none: its scales are NaN then."""
    if dtype == torch.int8:
        return torch.full(shape, 127, dtype=torch.int8)
    return torch.full(shape, NAN).to(dtype)


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = LARGEST_CODE[dtype]
    scale = x.abs().amax(-1) / largest
    scale[scale == 0] = 1
    codes = x / scale[..., None]
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale


def lay_out(
    what: Sequences,
    *,
    kv_dtype: torch.dtype = torch.float32,
    page_size: int = 16,
    head_major: bool = False,
    gap: int = 0,
    ragged: bool = False,
    seed: int = 0,
) -> Call:
    """Puts sequences in shuffled pages among poison. gap: elements of poison between rows; head_major: strides."""
    random = torch.Generator().manual_seed(seed)
    num_kv_heads, head_dim = what.q.shape[1] if not what.k else what.k[0].shape[1], what.q.shape[2]
    needed = [max(-(-n // page_size), 0) for n in what.kv_lens]
    num_pages = sum(needed) + 2
    order = torch.randperm(num_pages, generator=random)[: sum(needed)].tolist()

    def pool(dtype: torch.dtype) -> Tensor:
        shape = (num_pages, page_size, num_kv_heads, head_dim + gap)
        if head_major:
            shape = (num_pages, num_kv_heads, page_size, head_dim + gap)
        storage = poisoned(shape, dtype)
        return (storage.transpose(1, 2) if head_major else storage)[..., :head_dim]

    call_options = dict(what.options)
    k_pages, v_pages = pool(kv_dtype), pool(kv_dtype)
    scales = kv_dtype in LARGEST_CODE
    k_scales = torch.full((num_pages, page_size, num_kv_heads), NAN) if scales else None
    v_scales = torch.full((num_pages, num_kv_heads, page_size), NAN).transpose(1, 2) if scales else None
    bad = torch.randint(len(BAD_PAGE_IDS), (len(needed), max([*needed, 0]) + 2), generator=random)
    page_table = torch.tensor(BAD_PAGE_IDS)[bad].to(torch.int32)
    for seq, kv_len in enumerate(what.kv_lens):
        for token in range(max(kv_len, 0)):
            if token % page_size == 0:
                page_table[seq, token // page_size] = order.pop()
            page, row = int(page_table[seq, token // page_size]), token % page_size
            for x, pages, page_scales in ((what.k, k_pages, k_scales), (what.v, v_pages, v_scales)):
                if page_scales is None:
                    pages[page, row] = x[seq][token].to(kv_dtype)
                else:
                    pages[page, row], page_scales[page, row] = quantised(x[seq][token], kv_dtype)
    q_len = 0 if ragged or len(set(what.q_lens)) != 1 else what.q_lens[0]
    lens = torch.tensor(what.kv_lens, dtype=torch.int32)
    return Call(
        what.q, k_pages, v_pages, page_table, lens, what.q_starts, q_len, call_options, k_scales, v_scales
    )  # fmt: skip


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def kv_params(pages: Tensor, scales: Tensor | None) -> Any:
    strides = dict(zip(("page_stride", "token_stride", "head_stride"), pages.stride()[:3], strict=True))
    if scales is not None:
        names = ("scale_page_stride", "scale_token_stride", "scale_head_stride")
        strides |= dict(zip(names, scales.stride(), strict=True))
    return _C.KvPages(data=address(pages), scales=address(scales), dtype=DTYPES[pages.dtype], **strides)


def run(call: Call, isa: Any = None, num_threads: int = 2) -> tuple[Tensor, Tensor]:
    """o and lse from the kernel; both start as NaN."""
    out, lse = torch.full_like(call.q, NAN), torch.full(call.q.shape[:2], NAN)
    options = dict(call.options)
    tensors = {name: options.pop(name, None) for name in ("sinks", "alibi_slopes", "tree_mask")}
    q_starts = torch.tensor(call.q_starts, dtype=torch.int32)
    params = _C.PagedAttentionParams(
        q=address(call.q),
        out=address(out),
        lse=address(lse),
        k=kv_params(call.k_pages, call.k_scales),
        v=kv_params(call.v_pages, call.v_scales),
        page_table=address(call.page_table),
        kv_lens=address(call.kv_lens),
        q_starts=0 if call.q_len else address(q_starts),
        **{name: address(x) for name, x in tensors.items()},
        q_token_stride=call.q.stride(0),
        q_head_stride=call.q.stride(1),
        out_token_stride=out.stride(0),
        out_head_stride=out.stride(1),
        page_table_stride=call.page_table.stride(0),
        num_seqs=len(call.kv_lens),
        q_len=call.q_len,
        num_q_heads=call.q.shape[1],
        num_kv_heads=call.k_pages.shape[2],
        head_dim=call.q.shape[2],
        page_size=call.k_pages.shape[1],
        q_dtype=DTYPES[call.q.dtype],
        **options,
    )
    _C.paged_attention(params, TEAMS[num_threads], isa or ISAS[-1])
    return out, lse


def with_options(what: Sequences, **options: Any) -> Sequences:
    return replace(what, options=what.options | options)
