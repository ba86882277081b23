# SPDX-License-Identifier: Apache-2.0
"""The calls that stand for rows of a table when it is tuned, on tensors of the GPU at hand."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pagedserve.backends.operands import AppendKv, Attention, RopeAppendKv, Sample
from pagedserve.backends.triton import attention, cache, fused, sampling, version
from pagedserve.backends.triton.catalogue import DTYPES
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import Target, of_device
from pagedserve.backends.triton.tune import Table, Trial, on_device_us, tune
from pagedserve.errors import BackendUnavailable

Build = Callable[[Target], list[Launch]]


def _normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.float32).to(dtype)


def _pages(num_pages: int, num_kv_heads: int, head_dim: int, kv: str) -> tuple[Tensor, Tensor | None]:
    rows = (num_pages, 16, num_kv_heads)
    if kv in ("bfloat16", "float16", "float32"):
        return _normal(*rows, head_dim, dtype=DTYPES[kv]), None
    width = head_dim // 2 if kv == "int4" else head_dim
    codes = torch.randint(1, 120, (*rows, width), device="cuda", dtype=torch.uint8)
    return codes.view(DTYPES[kv]), torch.rand(rows, device="cuda")


def _attention(op: str, num_seqs: int, kv_len: int, head_dim: int, dtype: str, kv: str, q_len: int) -> Build:
    """Of num_seqs sequences, their last q_len tokens the queries; 32 heads over 8."""
    num_pages, num_tokens = num_seqs * kv_len // 16, num_seqs * q_len
    (k_pages, k_scales), (v_pages, v_scales) = (_pages(num_pages, 8, head_dim, kv) for _ in range(2))
    table = torch.randperm(num_pages, device="cuda").to(torch.int32).view(num_seqs, -1)
    lens = torch.full((num_seqs,), kv_len, device="cuda", dtype=torch.int32)
    q = _normal(num_tokens, 32, head_dim, dtype=DTYPES[dtype])
    call = Attention(
        q=q,
        k_pages=k_pages,
        v_pages=v_pages,
        page_table=table,
        kv_lens=lens,
        k_scales=k_scales,
        v_scales=v_scales,
        out=torch.empty_like(q),
        scale=head_dim**-0.5,
    )
    if op == "paged_decode":
        call.q_len = q_len
        return lambda target: attention.paged_decode(target, call)
    call.q_starts = torch.arange(0, num_tokens + 1, q_len, device="cuda", dtype=torch.int32)
    return lambda target: attention.paged_prefill(target, call)


def _append() -> Build:
    k, v = _normal(4096, 8, 128), _normal(4096, 8, 128)
    (k_pages, _), (v_pages, _) = (_pages(512, 8, 128, "bfloat16") for _ in range(2))
    slots = torch.randperm(512 * 16, device="cuda")[:4096]
    call = AppendKv(k=k, v=v, k_pages=k_pages, v_pages=v_pages, slot_mapping=slots)
    return lambda target: cache.append_kv(target, call)


def _rope_append() -> Build:
    (k_pages, _), (v_pages, _) = (_pages(512, 8, 128, "bfloat16") for _ in range(2))
    norm = _normal(128, dtype=torch.float32)
    call = RopeAppendKv(
        q=_normal(4096, 32, 128),
        k=_normal(4096, 8, 128),
        v=_normal(4096, 8, 128),
        positions=torch.arange(4096, device="cuda", dtype=torch.int32),
        cos_sin=_normal(8192, 128, dtype=torch.float32),
        k_pages=k_pages,
        v_pages=v_pages,
        slot_mapping=torch.randperm(512 * 16, device="cuda")[:4096],
        q_norm=norm,
        k_norm=norm,
        eps=1e-6,
        interleaved=False,
    )
    return lambda target: cache.rope_append_kv(target, call)


def _merge() -> Build:
    o, lse = _normal(4, 1024, 32, 128, dtype=torch.float32), _normal(4, 1024, 32, dtype=torch.float32)
    return lambda target: attention.merge_states(target, o, lse, torch.empty_like(o[0]), torch.empty_like(lse[0]))


def _norm() -> Build:
    x, residual, weight = _normal(4096, 1, 8192), _normal(4096, 1, 8192), _normal(8192, dtype=torch.float32)
    return lambda target: fused.rms_norm(target, x, weight, residual, torch.empty_like(x), 1e-6, False)


def _act(build: Callable[..., list[Launch]]) -> Build:
    gate_up = _normal(4096, 16384)
    return lambda target: build(target, gate_up, gate_up.new_empty(4096, 8192))


def _rope() -> Build:
    x, cos_sin = _normal(4096, 64, 128), _normal(8192, 128, dtype=torch.float32)
    positions = torch.arange(4096, device="cuda", dtype=torch.int32)
    return lambda target: fused.rope(target, x, positions, cos_sin, False)


def _sample() -> Build:
    num_rows = 64
    logits = _normal(num_rows, 128256, dtype=torch.float32)

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((num_rows,), value, device="cuda", dtype=dtype)

    params = (full(0.8), full(50, torch.int32), full(0.95), full(0), full(1), full(0), full(0))
    keys = (full(1, torch.int64), full(2, torch.int64))
    starts = torch.zeros(num_rows + 1, device="cuda", dtype=torch.int32)
    history = (starts[:0], starts, starts[:-1])
    results = (full(0, torch.int32), full(0), logits.new_empty((num_rows, 0), dtype=torch.int32), logits[:, :0])
    call = Sample.of("sample", logits, *params, *keys, *history, *results)
    return lambda target: sampling.sample(target, call)


def _attention_trial(op: str, shape: tuple[int, int, int], dtype: str, kv: str, bits: int, q_len: int = 1) -> Trial:
    num_seqs, kv_len, head_dim = shape
    facts = {"head_dim": head_dim, "element_bits": bits, "block_m": 16 if q_len == 1 else 32}
    name = f"{num_seqs}x{kv_len}+{q_len}-h32/8-d{head_dim}-p16-{dtype}-{kv}"
    return Trial(op, name, facts, functools.partial(_attention, op, *shape, dtype, kv, q_len))


TRIALS: tuple[Trial, ...] = (
    *(
        _attention_trial("paged_decode", shape, dtype, kv, bits)
        for shape, dtype, kv, bits in (
            ((32, 4096, 128), "bfloat16", "bfloat16", 16),
            ((32, 4096, 256), "bfloat16", "bfloat16", 16),
            ((32, 4096, 128), "bfloat16", "int4", 4),
            ((32, 4096, 128), "float32", "float32", 32),
            ((32, 4096, 256), "float32", "float32", 32),
        )
    ),
    _attention_trial("paged_decode", (32, 4096, 128), "bfloat16", "bfloat16", 16, q_len=8),
    *(
        _attention_trial("paged_prefill", shape, dtype, dtype, bits, q_len=shape[1])
        for shape, dtype, bits in (
            ((8, 4096, 128), "bfloat16", 16),
            ((8, 4096, 256), "bfloat16", 16),
            ((8, 1024, 128), "float32", 32),
        )
    ),
    Trial("append_kv", "4096-h8-d128-bf16", {}, _append),
    Trial("rope_append_kv", "4096-h32/8-d128-bf16-norms", {}, _rope_append),
    Trial("merge_states", "4x1024-h32-d128-f32", {}, _merge),
    Trial("rms_norm", "4096x8192-bf16-residual", {}, _norm),
    Trial("silu_mul", "4096x8192-bf16", {}, functools.partial(_act, fused.silu_mul)),
    Trial("gelu_mul", "4096x8192-bf16", {}, functools.partial(_act, fused.gelu_mul)),
    Trial("rope", "4096-h64-d128-bf16", {}, _rope),
    Trial("sample", "64x128256-top_k-top_p", {}, _sample),
)


def tune_here(trials: Sequence[Trial]) -> tuple[int, Table]:
    """Tunes on the current CUDA device. Returns the architecture and its table.

    Raises:
        BackendUnavailable: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable("tuning times kernels on a CUDA GPU, and torch sees none here; --list needs none")
    target = of_device(torch.cuda.current_device())
    signature = {
        "gpu": torch.cuda.get_device_name(),
        "triton": version.installed() or "",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    return target.table, tune(trials, target, signature, on_device_us)
