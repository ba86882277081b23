# SPDX-License-Identifier: Apache-2.0
"""Attention over pages, and what writes and moves them. torch gathers the pages, then attends."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.cases.case import BenchCase, Inputs
from pagedserve.memory import host_bytes
from pagedserve.ops import decode_workspace_bytes

SHAPE = re.compile(r"(\d+x\d+(?:,\d+x\d+)*)(?:\+(\d+))?-h(\d+)/(\d+)-d(\d+)-p(\d+)-(f32|bf16|f16|fp8|int8|int4)(-hnd)?")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float8_e4m3fn}
DTYPES |= {"int8": torch.int8, "int4": torch.uint8}
LARGEST_CODE = {"fp8": 448, "int8": 127, "int4": 7}

DEFAULT = {
    "paged_decode": (
        "32x4096-h32/8-d128-p16-bf16-hnd",
        "32x4096-h32/8-d128-p16-bf16",
        "32x4096-h32/8-d128-p16-int8-hnd",
        "1x4096-h32/8-d128-p16-bf16-hnd",
        "32x1056-h9/3-d64-p16-bf16-hnd",  # the demo model: a prompt of 1,024 and half of 64 tokens
        "8x1056-h9/3-d64-p16-bf16-hnd",
        "1x1056-h9/3-d64-p16-bf16-hnd",
        "32x1056-h9/3-d64-p16-f32-hnd",
        "32x1056-h9/3-d64-p16-int8-hnd",
        "32x1056-h9/3-d64-p16-int4-hnd",
    ),
    "paged_prefill": (
        "1x1024+1024-h9/3-d64-p16-bf16",
        "1x1024+1024-h32/8-d128-p16-bf16",
        "1x4096+256-h9/3-d64-p16-bf16",
        "8x128+128-h9/3-d64-p16-bf16",
        "1x1024+1024-h9/3-d64-p16-int8",
    ),
}
QUICK = {
    "paged_decode": ("3x40-h4/2-d16-p4-bf16", "2x33-h4/2-d16-p4-int8", "2x33-h4/2-d16-p4-int4"),
    "paged_prefill": ("2x40+8-h4/2-d16-p4-bf16",),
}


@dataclass(frozen=True)
class AttentionShape:
    """Sequences of so many keys each, the last q_len of which are also queries.

    Attributes:
        heads_first: pages as the engine lays them on the CPU: a head's tokens follow one another, on huge pages.
    """

    kv_lens: tuple[int, ...]
    q_len: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    kv: str
    heads_first: bool = False

    @property
    def num_seqs(self) -> int:
        return len(self.kv_lens)

    @property
    def kv_len(self) -> int:
        """Of the longest."""
        return max(self.kv_lens)

    @staticmethod
    def parse(text: str) -> AttentionShape:
        match = SHAPE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no attention shape; write SEQSxKEYS[,SEQSxKEYS..][+QUERIES]-hQ/KV-dDIM-pPAGE-KIND[-hnd] "
                f"with KIND one of {', '.join(DTYPES)}, as in 32x4096-h32/8-d128-p16-bf16, or choose a grid: default, "
                f"quick"
            )
        pairs = (part.split("x") for part in match[1].split(","))
        lens = tuple(int(keys) for count, keys in pairs for _ in range(int(count)))
        q_len, num_q_heads, num_kv_heads, head_dim, page_size = (int(group or 1) for group in match.groups()[1:6])
        if not lens or q_len > min(lens):
            raise ValueError(f"{text!r}: {q_len} queries do not fit among {min(lens, default=0)} keys")
        heads_first = match[8] is not None
        return AttentionShape(lens, q_len, num_q_heads, num_kv_heads, head_dim, page_size, match[7], heads_first)

    def inputs(self, *, prefill: bool) -> Inputs:
        counts = [-(-length // self.page_size) for length in self.kv_lens]
        num_pages = sum(counts)
        table = torch.zeros(self.num_seqs, max(counts), dtype=torch.int32)
        for row, ids in zip(table, torch.randperm(num_pages).to(torch.int32).split(counts), strict=True):
            row[: len(ids)] = ids
        num_tokens = self.num_seqs * self.q_len
        q_dtype = torch.bfloat16 if self.kv in LARGEST_CODE else DTYPES[self.kv]
        page_shape = (num_pages, self.page_size, self.num_kv_heads, self.head_dim)
        inputs: Inputs = {
            "q": torch.randn(num_tokens, self.num_q_heads, self.head_dim).to(q_dtype),
            "k_pages": self._pages(page_shape),
            "v_pages": self._pages(page_shape),
            "page_table": table,
            "kv_lens": torch.tensor(self.kv_lens, dtype=torch.int32),
            "out": torch.empty(num_tokens, self.num_q_heads, self.head_dim, dtype=q_dtype),
        }
        if self.kv in LARGEST_CODE:
            inputs["k_scales"] = torch.rand(page_shape[:3]) / LARGEST_CODE[self.kv]
            inputs["v_scales"] = torch.rand(page_shape[:3]) / LARGEST_CODE[self.kv]
        if prefill:
            inputs["q_starts"] = torch.arange(0, num_tokens + 1, self.q_len, dtype=torch.int32)
        elif self.q_len > 1:
            inputs["q_len"] = self.q_len
        return inputs

    def torch(self, inputs: Inputs) -> Tensor:
        """[num_seqs, num_q_heads, q_len, head_dim]: pages gathered, then torch's fused attention."""
        q = inputs["q"].view(self.num_seqs, self.q_len, self.num_q_heads, self.head_dim).transpose(1, 2)
        mask = None
        if self.q_len > 1 or min(self.kv_lens) < self.kv_len:
            keys = torch.arange(self.kv_len, device=q.device)
            behind = torch.arange(self.q_len, device=q.device) - self.q_len
            last = inputs["kv_lens"][:, None] + behind  # [num_seqs, q_len]
            mask = (keys <= last[..., None])[:, None]  # [num_seqs, 1, q_len, kv_len]
        k, v = (self._gathered(inputs, name, q.dtype) for name in "kv")
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def _gathered(self, inputs: Inputs, name: str, dtype: torch.dtype) -> Tensor:
        table = inputs["page_table"].long().flatten()
        pages = inputs[f"{name}_pages"][table]
        if self.kv == "int4":
            pages = torch.stack((pages & 15, pages >> 4), dim=-1).flatten(-2).to(torch.int8) - 8
        if self.kv in LARGEST_CODE:
            pages = (pages.to(dtype) * inputs[f"{name}_scales"][table][..., None]).to(dtype)
        tokens = pages.reshape(self.num_seqs, -1, self.num_kv_heads, self.head_dim)
        return tokens[:, : self.kv_len].transpose(1, 2)

    def _pages(self, shape: tuple[int, ...]) -> Tensor:
        pages = _random_pages(shape, self.kv)
        if not self.heads_first:
            return pages
        laid = host_bytes(pages.nbytes).view(pages.dtype).view(pages.transpose(1, 2).shape).transpose(1, 2)
        return laid.copy_(pages)


def _random_pages(shape: tuple[int, ...], kv: str) -> Tensor:
    if kv == "fp8":
        return torch.randn(shape).mul_(64).clamp_(-448, 448).to(torch.float8_e4m3fn)
    if kv == "int8":
        return torch.randint(-127, 128, shape, dtype=torch.int8)
    if kv == "int4":
        nibbles = torch.randint(1, 16, (*shape[:-1], shape[-1] // 2, 2), dtype=torch.uint8)
        return nibbles[..., 0] | nibbles[..., 1] << 4
    return torch.randn(shape, dtype=DTYPES[kv])


def attention_case(op: str, text: str) -> BenchCase:
    """A case of paged_decode or paged_prefill from a shape's text, which is its name.

    Raises:
        ValueError: text is no shape; the message says how to write one.
    """
    shape = AttentionShape.parse(text)
    return BenchCase(
        op=op,
        name=text,
        make=lambda: shape.inputs(prefill=op == "paged_prefill"),
        torch=shape.torch,
        torch_way="gather, then scaled_dot_product_attention",
        rate="float32" if shape.kv == "f32" else "bfloat16",
    )


def _cases(op: str, grid: str) -> list[BenchCase]:
    return [attention_case(op, text) for text in (DEFAULT if grid == "default" else QUICK)[op]]


def paged_decode(grid: str) -> list[BenchCase]:
    return _cases("paged_decode", grid)


def plan_decode(grid: str) -> list[BenchCase]:
    texts = ("32x4096-h32/8-d128-p16-bf16", "256x1024-h32/8-d128-p16-bf16")

    def case(text: str) -> BenchCase:
        shape = AttentionShape.parse(text)
        heads = {"num_q_heads": shape.num_q_heads, "num_kv_heads": shape.num_kv_heads, "head_dim": shape.head_dim}

        def make() -> Inputs:
            size = decode_workspace_bytes(shape.num_seqs, *heads.values(), max_kv_tokens=sum(shape.kv_lens))
            lens = torch.tensor(shape.kv_lens, dtype=torch.int32)
            return {"kv_lens": lens, "workspace": torch.empty(size, dtype=torch.uint8), **heads}

        name = f"{shape.num_seqs}x{shape.kv_len}-h{shape.num_q_heads}/{shape.num_kv_heads}-d{shape.head_dim}"
        return BenchCase("plan_decode", name, make, lambda inputs: inputs["kv_lens"].cumsum(0), "cumsum of the lengths")

    return [case(text) for text in (texts if grid == "default" else ("3x40-h4/2-d16-p4-bf16",))]


def paged_prefill(grid: str) -> list[BenchCase]:
    return _cases("paged_prefill", grid)


def merge_states(grid: str) -> list[BenchCase]:
    shapes = ((4, 32, 32, 128), (2, 1024, 9, 64)) if grid == "default" else ((2, 3, 2, 8),)

    def case(num_states: int, num_tokens: int, num_heads: int, head_dim: int) -> BenchCase:
        def make() -> Inputs:
            return {
                "o": torch.randn(num_states, num_tokens, num_heads, head_dim),
                "lse": torch.randn(num_states, num_tokens, num_heads),
            }

        def by_torch(inputs: Inputs) -> Tensor:
            weights = torch.softmax(inputs["lse"], dim=0)
            return torch.einsum("sth,sthd->thd", weights, inputs["o"])

        name = f"{num_states}x{num_tokens}-h{num_heads}-d{head_dim}-f32"
        return BenchCase("merge_states", name, make, by_torch, "softmax, then einsum")

    return [case(*shape) for shape in shapes]


def append_kv(grid: str) -> list[BenchCase]:
    shapes = (
        ((32, 3, 64, "bf16"), (1024, 3, 64, "bf16"), (1024, 3, 64, "int8"), (1024, 8, 128, "bf16"))
        if grid == "default"
        else ((3, 2, 8, "bf16"),)
    )

    def case(num_tokens: int, num_kv_heads: int, head_dim: int, kv: str) -> BenchCase:
        num_pages = num_tokens // 16 + 1
        shape = (num_pages, 16, num_kv_heads, head_dim)

        def make() -> Inputs:
            inputs: Inputs = {
                "k": torch.randn(num_tokens, num_kv_heads, head_dim),
                "v": torch.randn(num_tokens, num_kv_heads, head_dim),
                "k_pages": torch.zeros(shape, dtype=DTYPES[kv]),
                "v_pages": torch.zeros(shape, dtype=DTYPES[kv]),
                "slot_mapping": torch.randperm(num_pages * 16)[:num_tokens],
            }
            if kv == "int8":
                inputs["k_scales"], inputs["v_scales"] = torch.ones(shape[:3]), torch.ones(shape[:3])
            return inputs

        def by_torch(inputs: Inputs) -> None:
            slots = inputs["slot_mapping"]
            for name in "kv":
                values = inputs[name]
                if kv == "int8":
                    scales = values.abs().amax(-1) / 127
                    inputs[f"{name}_scales"].view(-1, num_kv_heads)[slots] = scales
                    values = torch.round(values / scales[..., None])
                inputs[f"{name}_pages"].view(-1, num_kv_heads, head_dim)[slots] = values.to(DTYPES[kv])

        return BenchCase(
            "append_kv", f"{num_tokens}-h{num_kv_heads}-d{head_dim}-f32-to-{kv}", make, by_torch, "index_put_"
        )

    return [case(*shape) for shape in shapes]


def rope_append_kv(grid: str) -> list[BenchCase]:
    shapes = ((1, 9, 3, 64), (32, 9, 3, 64), (1024, 32, 8, 128)) if grid == "default" else ((3, 4, 2, 8),)

    def case(num_tokens: int, num_q_heads: int, num_kv_heads: int, head_dim: int) -> BenchCase:
        num_pages, half = num_tokens // 16 + 1, head_dim // 2

        def make() -> Inputs:
            pages = torch.zeros(2, num_pages, 16, num_kv_heads, head_dim, dtype=torch.bfloat16)
            return {
                "q": torch.randn(num_tokens, num_q_heads, head_dim),
                "k": torch.randn(num_tokens, num_kv_heads, head_dim),
                "v": torch.randn(num_tokens, num_kv_heads, head_dim),
                "positions": torch.randint(0, 4096, (num_tokens,), dtype=torch.int32),
                "cos_sin": torch.randn(4096, head_dim).sign() / 2**0.5,
                "k_pages": pages[0],
                "v_pages": pages[1],
                "slot_mapping": torch.randperm(num_pages * 16)[:num_tokens],
                "q_norm": torch.rand(head_dim) + 0.5,
                "k_norm": torch.rand(head_dim) + 0.5,
            }

        def by_torch(inputs: Inputs) -> None:
            cos, sin = inputs["cos_sin"][inputs["positions"].long()][:, None].split(half, -1)
            for name in ("q", "k"):
                a, b = functional.rms_norm(inputs[name], (head_dim,), inputs[f"{name}_norm"], 1e-6).split(half, -1)
                inputs[name].copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), -1))
            for name in ("k", "v"):
                rows = inputs[f"{name}_pages"].view(-1, num_kv_heads, head_dim)
                rows[inputs["slot_mapping"]] = inputs[name].to(rows.dtype)

        name = f"{num_tokens}-h{num_q_heads}/{num_kv_heads}-d{head_dim}-f32-to-bf16"
        return BenchCase("rope_append_kv", name, make, by_torch, "rms_norm, cat, index_put_")

    return [case(*shape) for shape in shapes]


def copy_pages(grid: str) -> list[BenchCase]:
    num_copies, page = (64, (2, 16, 3, 64)) if grid == "default" else (2, (2, 2, 1, 8))

    def make() -> Inputs:
        ids = torch.randperm(2 * num_copies)
        pages = torch.randn(2 * num_copies, *page, dtype=torch.bfloat16)
        return {"src": pages, "dst": pages, "src_pages": ids[:num_copies], "dst_pages": ids[num_copies:]}

    def by_torch(inputs: Inputs) -> None:
        inputs["dst"][inputs["dst_pages"]] = inputs["src"][inputs["src_pages"]]

    return [BenchCase("copy_pages", f"{num_copies}-pages-bf16", make, by_torch, "index, then index_put_")]
