# SPDX-License-Identifier: Apache-2.0
"""A model's forward, recorded once and run every step.

A forward is written against `StepBuilder`: it asks for buffers and calls ops on them; nothing runs until `Step.run`.
`EagerStep` records a list of calls of pagedserve.ops, on any backend, and is the definition. The CPU backend records
the same calls into a program that its threads run without returning to Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops import attention, cache, fused
from pagedserve.ops.linear import embed, linear, take_rows
from pagedserve.ops.registry import STEP_BUILDERS, TABLE
from pagedserve.ops.weight import Weight


@dataclass(frozen=True)
class StepLimits:
    """The largest step: its tokens, its sequences, pages of a sequence, and rows of logits."""

    max_tokens: int
    max_seqs: int
    max_pages: int
    max_rows: int

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_seqs", "max_pages", "max_rows"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"StepLimits: {name} is {getattr(self, name)}; give 1 or above")


class KVLayer(NamedTuple):
    """One layer's pages, [num_pages, page_size, num_kv_heads, head_dim], and their scales where they are quantised.

    int4 pages are uint8 [num_pages, page_size, num_kv_heads, head_dim / 2].
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    @property
    def head_dim(self) -> int:
        return self.k.shape[3] * (2 if self.k.dtype == torch.uint8 else 1)


class StepInputs:
    """What the engine writes before each run: tensors on the CPU, of a step's largest size, at fixed addresses.

    token_ids, positions: [max_tokens] int32. slot_mapping: [max_tokens] int64. q_starts: [max_seqs + 1] int32.
    kv_lens: [max_seqs] int32. page_table: [max_seqs, max_pages] int32. logit_rows: [max_rows] int32, tokens of the
    step whose logits are wanted.
    """

    def __init__(self, limits: StepLimits) -> None:
        self.token_ids = torch.zeros(limits.max_tokens, dtype=torch.int32)
        self.positions = torch.zeros(limits.max_tokens, dtype=torch.int32)
        self.slot_mapping = torch.full((limits.max_tokens,), -1, dtype=torch.int64)
        self.q_starts = torch.zeros(limits.max_seqs + 1, dtype=torch.int32)
        self.kv_lens = torch.zeros(limits.max_seqs, dtype=torch.int32)
        self.page_table = torch.full((limits.max_seqs, limits.max_pages), -1, dtype=torch.int32)
        self.logit_rows = torch.zeros(limits.max_rows, dtype=torch.int32)


@dataclass(frozen=True)
class Buffer:
    """A float32 tensor of a step, [max_tokens or max_rows, width], of which a run uses the first rows.

    per: "token" or "row". `columns` is a view; writing it writes the buffer.
    """

    tensor: Tensor
    per: str

    @property
    def width(self) -> int:
        return self.tensor.shape[1]

    def columns(self, begin: int, end: int) -> Buffer:
        """Columns begin to end, a view."""
        if not 0 <= begin < end <= self.width:
            raise InvalidInput(f"columns({begin}, {end}) of a buffer of width {self.width}")
        return Buffer(self.tensor[:, begin:end], self.per)


class Step(Protocol):
    """A recorded forward."""

    inputs: StepInputs

    def run(self, num_tokens: int, num_seqs: int, num_rows: int) -> Tensor:
        """Computes a step over the first num_tokens tokens, num_seqs rows of the batch and num_rows logit rows.

        Returns:
            Logits [num_rows, vocab_size] float32, overwritten by the next run.
        """
        ...


class StepBuilder(Protocol):
    """Records a forward. Ops mean what the functions of pagedserve.ops mean, over `inputs`."""

    limits: StepLimits
    inputs: StepInputs

    def buffer(self, width: int, per: str = "token") -> Buffer: ...
    def embed(self, weight: Weight, *, out: Buffer, scale: float = 1.0) -> None: ...
    def rms_norm(
        self,
        x: Buffer,
        weight: Tensor,
        *,
        eps: float,
        out: Buffer,
        residual: Buffer | None = None,
        accumulate: bool = False,
        head_dim: int | None = None,
    ) -> None: ...
    def linear(
        self, x: Buffer, weight: Weight, *, out: Buffer, bias: Tensor | None = None, accumulate: bool = False
    ) -> None: ...
    def rope(self, x: Buffer, cos_sin: Tensor, *, head_dim: int, interleaved: bool = False) -> None: ...
    def append_kv(self, k: Buffer, v: Buffer, layer: KVLayer) -> None: ...
    def attention(
        self,
        q: Buffer,
        layer: KVLayer,
        *,
        out: Buffer,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None: ...
    def silu_mul(self, gate_up: Buffer, *, out: Buffer) -> None: ...
    def gelu_mul(self, gate_up: Buffer, *, out: Buffer) -> None: ...
    def take_rows(self, x: Buffer, *, out: Buffer) -> None: ...
    def soft_cap(self, x: Buffer, cap: float) -> None: ...
    def build(self, logits: Buffer) -> Step: ...


class Counts(NamedTuple):
    """Of one run."""

    tokens: int
    seqs: int
    rows: int


class EagerStep:
    """Builder and step in one: a list of calls, run one by one on the backend that each op names or finds.

    Source: this is the definition of a step; every other builder agrees with it to rounding.
    """

    def __init__(self, backend: str, limits: StepLimits, device: str | torch.device = "cpu") -> None:
        check_backend(backend)
        self.limits = limits
        self.inputs = StepInputs(limits)
        self._backend = backend
        self._device = torch.device(device)
        self._calls: list[Callable[[Counts], object]] = []
        self._logits: Buffer | None = None

    def buffer(self, width: int, per: str = "token") -> Buffer:
        rows = {"token": self.limits.max_tokens, "row": self.limits.max_rows}
        if per not in rows or width < 1:
            raise InvalidInput(f"buffer(width={width}, per={per!r}); width is 1 or above, per 'token' or 'row'")
        return Buffer(torch.zeros(rows[per], width, dtype=torch.float32, device=self._device), per)

    def embed(self, weight: Weight, *, out: Buffer, scale: float = 1.0) -> None:
        def call(n: Counts) -> None:
            token_ids = self._input(self.inputs.token_ids, n.tokens)
            embed(token_ids, weight, scale=scale, out=_used(out, n), backend=self._backend)

        self._calls.append(call)

    def rms_norm(
        self,
        x: Buffer,
        weight: Tensor,
        *,
        eps: float,
        out: Buffer,
        residual: Buffer | None = None,
        accumulate: bool = False,
        head_dim: int | None = None,
    ) -> None:
        def call(n: Counts) -> None:
            fused.rms_norm(
                _heads(_used(x, n), head_dim),
                weight,
                eps=eps,
                residual=None if residual is None else _used(residual, n),
                accumulate=accumulate,
                out=_heads(_used(out, n), head_dim),
                backend=self._backend,
            )

        self._calls.append(call)

    def linear(
        self, x: Buffer, weight: Weight, *, out: Buffer, bias: Tensor | None = None, accumulate: bool = False
    ) -> None:
        self._calls.append(
            lambda n: linear(
                _used(x, n), weight, bias=bias, accumulate=accumulate, out=_used(out, n), backend=self._backend
            )
        )

    def rope(self, x: Buffer, cos_sin: Tensor, *, head_dim: int, interleaved: bool = False) -> None:
        def call(n: Counts) -> None:
            positions = self._input(self.inputs.positions, n.tokens)
            heads = _heads(_used(x, n), head_dim)
            fused.rope(heads, positions, cos_sin, interleaved=interleaved, backend=self._backend)

        self._calls.append(call)

    def append_kv(self, k: Buffer, v: Buffer, layer: KVLayer) -> None:
        head_dim = layer.head_dim

        def call(n: Counts) -> None:
            cache.append_kv(
                _heads(_used(k, n), head_dim),
                _heads(_used(v, n), head_dim),
                layer.k,
                layer.v,
                self._input(self.inputs.slot_mapping, n.tokens),
                k_scales=layer.k_scales,
                v_scales=layer.v_scales,
                backend=self._backend,
            )

        self._calls.append(call)

    def attention(
        self,
        q: Buffer,
        layer: KVLayer,
        *,
        out: Buffer,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        head_dim = layer.head_dim
        in_bf16 = layer.k.dtype == torch.bfloat16

        def call(n: Counts) -> None:
            queries, result = _heads(_used(q, n), head_dim), _heads(_used(out, n), head_dim)
            queries = queries.bfloat16() if in_bf16 else queries
            o = torch.empty_like(queries) if in_bf16 else result
            attention.paged_prefill(
                queries,
                layer.k,
                layer.v,
                self._input(self.inputs.page_table, n.seqs),
                self._input(self.inputs.kv_lens, n.seqs),
                self._input(self.inputs.q_starts, n.seqs + 1),
                scale=scale,
                window=window,
                soft_cap=soft_cap,
                sinks=sinks,
                k_scales=layer.k_scales,
                v_scales=layer.v_scales,
                out=o,
                backend=self._backend,
            )
            if in_bf16:
                result.copy_(o)

        self._calls.append(call)

    def silu_mul(self, gate_up: Buffer, *, out: Buffer) -> None:
        self._calls.append(lambda n: fused.silu_mul(_used(gate_up, n), out=_used(out, n), backend=self._backend))

    def gelu_mul(self, gate_up: Buffer, *, out: Buffer) -> None:
        self._calls.append(lambda n: fused.gelu_mul(_used(gate_up, n), out=_used(out, n), backend=self._backend))

    def take_rows(self, x: Buffer, *, out: Buffer) -> None:
        def call(n: Counts) -> None:
            rows = self._input(self.inputs.logit_rows, n.rows)
            take_rows(_used(x, n), rows, out=_used(out, n), backend=self._backend)

        self._calls.append(call)

    def soft_cap(self, x: Buffer, cap: float) -> None:
        self._calls.append(lambda n: fused.soft_cap(_used(x, n), cap, backend=self._backend))

    def build(self, logits: Buffer) -> Step:
        if logits.per != "row":
            raise InvalidInput("build: logits is a buffer per token; give one per row, as take_rows fills it")
        self._logits = logits
        return self

    def run(self, num_tokens: int, num_seqs: int, num_rows: int) -> Tensor:
        if self._logits is None:
            raise InvalidInput("run: the step was not built; call build(logits) first")
        check_counts(self.limits, num_tokens, num_seqs, num_rows)
        counts = Counts(num_tokens, num_seqs, num_rows)
        for call in self._calls:
            call(counts)
        return self._logits.tensor[:num_rows]

    def _input(self, tensor: Tensor, count: int) -> Tensor:
        return tensor[:count].to(self._device)


def check_counts(limits: StepLimits, num_tokens: int, num_seqs: int, num_rows: int) -> None:
    """Refuses a run beyond a step's limits."""
    for name, given, limit in (
        ("num_tokens", num_tokens, limits.max_tokens),
        ("num_seqs", num_seqs, limits.max_seqs),
        ("num_rows", num_rows, limits.max_rows),
    ):
        if not 0 <= given <= limit:
            raise InvalidInput(f"run: {name} is {given}; the step was recorded for at most {limit}")


def _used(buffer: Buffer, counts: Counts) -> Tensor:
    return buffer.tensor[: counts.rows if buffer.per == "row" else counts.tokens]


def _heads(x: Tensor, head_dim: int | None) -> Tensor:
    """[rows, width] as [rows, width / head_dim, head_dim], a view."""
    return x if head_dim is None else x.view(len(x), x.shape[1] // head_dim, head_dim)


def check_backend(backend: str) -> None:
    """Refuses a name that is no backend of any op, nor "auto".

    Raises:
        InvalidInput: the message lists those there are.
    """
    names = {"auto": None} | dict.fromkeys(row.backend for row in TABLE)
    if backend not in names:
        raise InvalidInput(f"there is no backend {backend!r}; choose from {', '.join(names)}")


# What a model's forward may call, and what follows it.
STEP_OPS = (
    *("embed", "rms_norm", "linear", "rope", "append_kv", "paged_prefill", "silu_mul", "gelu_mul", "take_rows"),
    *("soft_cap", "sample"),
)


def check_step_backend(backend: str, device: str = "cpu") -> None:
    """Refuses a backend that has not every op of a model's step for tensors of this device type.

    Raises:
        InvalidInput: the message names what is missing, and the backends that can.
    """
    check_backend(backend)
    has: dict[str, set[str]] = {row.backend: set() for row in TABLE}
    for row in TABLE:
        if not row.requirement.devices or device in row.requirement.devices:
            has[row.backend].add(row.op)
    missing = [] if backend == "auto" else [op for op in STEP_OPS if op not in has[backend]]
    if missing:
        able = ", ".join(name for name, found in has.items() if found.issuperset(STEP_OPS))
        raise InvalidInput(
            f"backend {backend!r} cannot run a model on {device} tensors: it has no {', '.join(missing)} for them; "
            f"choose from auto, {able}"
        )


def step_builder(backend: str, limits: StepLimits, device: str | torch.device = "cpu") -> StepBuilder:
    """The builder of a backend: its own where it records programs, `EagerStep` otherwise.

    Args:
        backend: a backend's name; every op of the step runs on it. "auto": the first on this kind of device that
            records steps itself; where there is none, each op finds its own.
        limits: sizes of the largest step.
        device: where buffers live.

    Raises:
        InvalidInput: there is no such backend.
    """
    for row in STEP_BUILDERS:
        if backend == row.backend or (backend == "auto" and torch.device(device).type == row.device):
            make: Callable[..., StepBuilder] = getattr(importlib.import_module(row.module), row.name)
            return make(limits, StepInputs(limits), Buffer)
    return EagerStep(backend, limits, device)
