# SPDX-License-Identifier: Apache-2.0
"""Who else can run a call of an op, on the same inputs: torch, another backend of ours, FlashInfer, FlashAttention 3.

A peer is given what it wants to have ready (a plan, a gathered table) outside of the timed call, unless it must be made
anew for every step; then its row says so in NOTES.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import torch

from bench.cases import BenchCase
from bench.cases.case import Inputs
from bench.device import Call
from pagedserve import ops
from pagedserve.errors import BackendUnavailable

NOTES = {
    "flashinfer": "its plan() copies lengths to the host for each step, and is not in the timed call",
    "fa3": "its scheduler metadata is made in the timed call, as it is for each layer",
}
FLASHINFER_WORKSPACE_BYTES = 256 << 20


def names(op: str, backend: str) -> list[str]:
    """Every peer that can be tried for an op beside one backend of it."""
    third = [name for name, module in (("flashinfer", "flashinfer"), ("fa3", "flash_attn_interface")) if has(module)]
    others = [name for name in ops.backends_of(op) if name not in (backend, "reference")]
    return ["torch", *others, *(third if op == "paged_decode" else [])]


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def call(name: str, case: BenchCase, inputs: Inputs) -> Call:
    """A peer's call on these inputs.

    Raises:
        BackendUnavailable: there is no such peer, or it cannot run this call; ImportError: it is not installed.
    """
    if name == "torch":
        return functools.partial(case.torch, case.prepare(inputs))
    if name in ops.backends_of(case.op):
        ours = functools.partial(getattr(ops, case.op), **inputs, backend=name)
        ours()  # refuses now what it does not run
        return ours
    if name not in ("flashinfer", "fa3"):
        known = ", ".join(["torch", "flashinfer", "fa3", *ops.backends_of(case.op)])
        raise BackendUnavailable(f"there is no peer {name!r} for {case.op}; there are {known}")
    if case.op != "paged_decode":
        raise BackendUnavailable(f"{name} is timed on paged_decode alone")
    refuse_quantised(name, inputs)
    return flashinfer_decode(inputs) if name == "flashinfer" else fa3_decode(inputs)


def refuse_quantised(name: str, inputs: Inputs) -> None:
    if inputs.get("k_scales") is not None:
        raise BackendUnavailable(f"{name} has no scale per token and head")


def flashinfer_decode(inputs: Inputs) -> Call:
    """BatchDecodeWithPagedKVCacheWrapper, planned once."""
    import flashinfer

    q, k, v = inputs["q"], inputs["k_pages"], inputs["v_pages"]
    if inputs.get("q_len", 1) != 1:
        raise BackendUnavailable("FlashInfer's decode takes one query a sequence")
    lens = inputs["kv_lens"].cpu()
    page_size = k.shape[1]
    counts = (lens + page_size - 1) // page_size
    indptr = torch.zeros(len(lens) + 1, dtype=torch.int32)
    indptr[1:] = counts.cumsum(0)
    table = inputs["page_table"].cpu()
    indices = torch.cat([row[:count] for row, count in zip(table, counts.tolist(), strict=True)])
    workspace = torch.empty(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        indptr.to(q.device),
        indices.to(torch.int32).to(q.device),
        ((lens - 1) % page_size + 1).to(torch.int32).to(q.device),
        q.shape[1],
        k.shape[2],
        q.shape[2],
        page_size,
        q_data_type=q.dtype,
        kv_data_type=k.dtype,
    )
    out = torch.empty_like(q)
    return lambda: wrapper.run(q, (k, v), out=out)


def fa3_decode(inputs: Inputs) -> Call:
    """flash_attn_with_kvcache of FlashAttention 3."""
    import flash_attn_interface

    q, q_len = inputs["q"], inputs.get("q_len", 1)
    queries = q.view(-1, q_len, *q.shape[1:])
    return lambda: flash_attn_interface.flash_attn_with_kvcache(
        queries,
        inputs["k_pages"],
        inputs["v_pages"],
        cache_seqlens=inputs["kv_lens"],
        page_table=inputs["page_table"],
        causal=True,
    )


def parse(text: str, op: str, backend: str) -> Sequence[str]:
    """Peers of a comma-separated list; "all" is every one that can be tried, "none" nobody."""
    if text == "all":
        return names(op, backend)
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]
