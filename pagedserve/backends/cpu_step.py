# SPDX-License-Identifier: Apache-2.0
"""A recorded step on the CPU: params structs over fixed buffers, replayed by the team without returning to Python.

Layers with q8 and q4 weights read x as int8. x is quantised once for all that share it, by the norm or the activation
that makes it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pagedserve import _C
from pagedserve.backends import cpu_params as params_of
from pagedserve.backends.cpu import TEAMS, isa, packed
from pagedserve.backends.operands import AppendKv, Attention
from pagedserve.backends.params import DTYPES, WITH_SCALES
from pagedserve.errors import InvalidInput
from pagedserve.memory import Arena

LOW_BIT = ("q8", "q4")
PER = {"token": _C.Per.token, "row": _C.Per.row}


class CpuStep:
    """Records a forward for the CPU's kernels; an `ops.StepBuilder`.

    Args:
        limits: an `ops.StepLimits`.
        inputs: its `ops.StepInputs`.
        buffer_type: `ops.Buffer`.
    """

    def __init__(self, limits: Any, inputs: Any, buffer_type: Callable[[Tensor, str], Any]) -> None:
        self.limits, self.inputs = limits, inputs
        self._buffer_type = buffer_type
        self._ops: list[tuple[Any, _C.Per]] = []
        self._kept: list[Any] = []  # what the program's addresses point into
        self._bounds: dict[str, int] = {}
        self._arena = Arena()
        self._quantised = _Quantised(limits, self._arena)

    def buffer(self, width: int, per: str = "token") -> Any:
        rows = {"token": self.limits.max_tokens, "row": self.limits.max_rows}
        if per not in rows or width < 1:
            raise InvalidInput(f"buffer(width={width}, per={per!r}); width is 1 or above, per 'token' or 'row'")
        memory = self._arena.take(rows[per] * width * 4)
        return self._buffer_type(memory.view(torch.float32).view(rows[per], width), per)

    def embed(self, weight: Any, *, out: Any, scale: float = 1.0) -> None:
        _same("embed: out's width", out.width, "the weight's in_features", weight.in_features)
        _per("embed: out", out, "token")
        self._bound("vocab_size", weight.out_features)
        params = params_of.embed(self.inputs.token_ids, weight, packed(weight), out.tensor, scale)
        self._add(params, out, weight, writes=(out,))

    def rms_norm(
        self,
        x: Any,
        weight: Tensor,
        *,
        eps: float,
        out: Any,
        residual: Any = None,
        accumulate: bool = False,
        head_dim: int | None = None,
    ) -> None:
        hidden = x.width if head_dim is None else head_dim
        _same("rms_norm: out's width", out.width, "x's", x.width)
        _vector("rms_norm: weight", weight, hidden)
        if residual is not None:
            _same("rms_norm: residual's width", residual.width, "x's", x.width)
            if head_dim is not None:
                raise InvalidInput(f"rms_norm: head_dim is {head_dim} beside a residual; a residual has no heads")
        params = params_of.rms_norm(
            _heads("rms_norm", x, hidden),
            weight,
            None if residual is None else residual.tensor[:, None],
            _heads("rms_norm", out, hidden),
            eps,
            accumulate,
        )
        self._add(params, x, weight, writes=(out,) if residual is None else (residual, out))
        if head_dim is None:
            self._quantised.made_by(params, out)

    def linear(self, x: Any, weight: Any, *, out: Any, bias: Tensor | None = None, accumulate: bool = False) -> None:
        _same("linear: x's width", x.width, "the weight's in_features", weight.in_features)
        _same("linear: out's width", out.width, "the weight's out_features", weight.out_features)
        _per("linear: out", out, x.per)
        if bias is not None:
            _vector("linear: bias", bias, weight.out_features)
        params = params_of.linear(x.tensor, weight, packed(weight), bias, out.tensor, accumulate)
        if weight.format in LOW_BIT:
            quantise, params.quantized = self._quantised.of(x)
            if quantise is not None:
                self._add(quantise, x)
        self._add(params, x, weight, bias, writes=(out,))

    def rope(self, x: Any, cos_sin: Tensor, *, head_dim: int, interleaved: bool = False) -> None:
        if cos_sin.dtype != torch.float32 or cos_sin.dim() != 2 or not cos_sin.is_contiguous():
            raise InvalidInput(f"rope: cos_sin is {_words(cos_sin)}; give a contiguous float32 table of `rope_table`")
        if cos_sin.shape[1] % 2 or cos_sin.shape[1] > head_dim:
            raise InvalidInput(
                f"rope: rotary_dim (axis 1 of cos_sin) is {cos_sin.shape[1]}; it must be even and at most head_dim "
                f"{head_dim}"
            )
        _per("rope: x", x, "token")
        self._bound("max_position", cos_sin.shape[0])
        params = params_of.rope(_heads("rope", x, head_dim), self.inputs.positions, cos_sin, interleaved)
        self._add(params, cos_sin, writes=(x,))

    def append_kv(self, k: Any, v: Any, layer: Any) -> None:
        num_kv_heads, head_dim = self._check_layer("append_kv", layer)
        for name, x in (("k", k), ("v", v)):
            _same(f"append_kv: {name}'s width", x.width, "a token of the pages", num_kv_heads * head_dim)
            _per(f"append_kv: {name}", x, "token")
        call = AppendKv(
            k=_heads("append_kv", k, head_dim),
            v=_heads("append_kv", v, head_dim),
            k_pages=layer.k,
            v_pages=layer.v,
            slot_mapping=self.inputs.slot_mapping,
            k_scales=layer.k_scales,
            v_scales=layer.v_scales,
        )
        self._add(params_of.append_kv(call), k, v, *layer)

    def attention(
        self,
        q: Any,
        layer: Any,
        *,
        out: Any,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        num_kv_heads, head_dim = self._check_layer("attention", layer)
        heads = _heads("attention", q, head_dim)
        _same("attention: out's width", out.width, "q's", q.width)
        _per("attention: q", q, "token")
        if heads.shape[1] % num_kv_heads:
            raise InvalidInput(
                f"attention: q has {heads.shape[1]} heads, the pages {num_kv_heads}; give a multiple of them"
            )
        if sinks is not None:
            _vector("attention: sinks", sinks, heads.shape[1])
        inputs = self.inputs
        call = Attention(
            q=heads,
            k_pages=layer.k,
            v_pages=layer.v,
            page_table=inputs.page_table,
            kv_lens=inputs.kv_lens,
            q_starts=inputs.q_starts,
            sinks=sinks,
            k_scales=layer.k_scales,
            v_scales=layer.v_scales,
            out=_heads("attention", out, head_dim),
            scale=scale,
            window=window,
            soft_cap=soft_cap,
        )
        self._add(params_of.attention(call, bf16_products=True), q, sinks, *layer, writes=(out,))

    def silu_mul(self, gate_up: Any, *, out: Any) -> None:
        self._act_mul("silu_mul", gate_up, out, _C.Activation.silu)

    def gelu_mul(self, gate_up: Any, *, out: Any) -> None:
        self._act_mul("gelu_mul", gate_up, out, _C.Activation.gelu_tanh)

    def _act_mul(self, op: str, gate_up: Any, out: Any, activation: _C.Activation) -> None:
        _same(f"{op}: gate_up's width", gate_up.width, "twice out's", 2 * out.width)
        params = params_of.act_mul(gate_up.tensor, out.tensor, activation)
        self._add(params, gate_up, writes=(out,))
        self._quantised.made_by(params, out)

    def take_rows(self, x: Any, *, out: Any) -> None:
        _same("take_rows: out's width", out.width, "x's", x.width)
        _per("take_rows: x", x, "token")
        _per("take_rows: out", out, "row")
        self._add(params_of.take_rows(x.tensor, self.inputs.logit_rows, out.tensor), x, writes=(out,))

    def soft_cap(self, x: Any, cap: float) -> None:
        if not 0 < cap < float("inf"):
            raise InvalidInput(f"soft_cap: cap is {cap}; give a finite number above 0")
        self._add(params_of.soft_cap(x.tensor, cap), writes=(x,))

    def build(self, logits: Any) -> RecordedStep:
        _per("build: logits", logits, "row")
        limits, inputs = self.limits, self.inputs
        program = _C.Program(
            isa(),
            _C.StepInputs(
                **{name: getattr(inputs, name).data_ptr() for name in INPUTS},
                **{name: getattr(limits, name) for name in ("max_tokens", "max_seqs", "max_pages", "max_rows")},
                **self._bounds,
            ),
        )
        for params, per in self._ops:
            program.add(params, per)
        return RecordedStep(program, inputs, logits.tensor, [self._kept, self._quantised])

    def _add(self, params: Any, *operands: Any, writes: tuple[Any, ...] = ()) -> None:
        """Records an op; its rows are those of the first buffer among operands and writes."""
        buffers = [x for x in (*operands, *writes) if isinstance(x, self._buffer_type)]
        self._ops.append((params, PER[buffers[0].per]))
        self._kept += [*operands, *writes]
        for buffer in writes:
            self._quantised.forget(buffer)

    def _bound(self, name: str, size: int) -> None:
        """An index must be inside every tensor it is used on: the smallest counts."""
        self._bounds[name] = min(size, self._bounds.get(name, size))

    def _check_layer(self, op: str, layer: Any) -> tuple[int, int]:
        num_pages, page_size, num_kv_heads, _ = layer.k.shape
        head_dim = layer.head_dim
        for name, pages, scales in (("k", layer.k, layer.k_scales), ("v", layer.v, layer.v_scales)):
            if pages.shape != layer.k.shape or pages.dtype not in DTYPES or pages.stride(3) != 1:
                raise InvalidInput(f"{op}: {name} pages are {_words(pages)}; k pages are {_words(layer.k)}")
            if (scales is not None) != (pages.dtype in WITH_SCALES):
                given = "without" if scales is None else "with"
                raise InvalidInput(f"{op}: {name} pages are {pages.dtype} {given} scales")
            if scales is not None and (scales.shape != pages.shape[:3] or scales.dtype != torch.float32):
                raise InvalidInput(f"{op}: {name}_scales are {_words(scales)}; give float32 {list(pages.shape[:3])}")
        if head_dim % 8 or head_dim > 256:
            raise InvalidInput(f"{op}: head_dim is {head_dim}; supported: multiples of 8 up to 256")
        if self._bounds.setdefault("page_size", page_size) != page_size:
            raise InvalidInput(f"{op}: page_size is {page_size}, of an earlier layer {self._bounds['page_size']}")
        self._bound("num_pages", num_pages)
        return num_kv_heads, head_dim


INPUTS = ("token_ids", "positions", "slot_mapping", "q_starts", "kv_lens", "page_table", "logit_rows")


class RecordedStep:
    """A program and the memory it works on; an `ops.Step`."""

    def __init__(self, program: _C.Program, inputs: Any, logits: Tensor, kept: list[Any]) -> None:
        self.inputs = inputs
        self._program, self._logits, self._kept = program, logits, kept

    def run(self, num_tokens: int, num_seqs: int, num_rows: int) -> Tensor:
        """As `ops.Step.run`; releases the GIL.

        Raises:
            InvalidInput: a count is beyond the step's limits, or an input points outside its tensor. Nothing has run.
        """
        try:
            self._program.run(TEAMS.get(), num_tokens, num_seqs, num_rows)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        return self._logits[:num_rows]

    def start_profile(self) -> None:
        """Times every op of the runs from here on; costs some 50 ns an op."""
        self._program.start_profile()

    def profile(self) -> list[tuple[str, int, int]]:
        """(op, calls, nanoseconds) since start_profile, on the first thread, waiting for the others included."""
        return [(timing.name, timing.calls, timing.ns) for timing in self._program.profile()]


class _Quantised:
    """Which buffers stand quantised at this point of the recording, and who could have quantised the others."""

    def __init__(self, limits: Any, arena: Arena) -> None:
        self._rows = {"token": limits.max_tokens, "row": limits.max_rows}
        self._arena = arena
        self._memory: dict[_Place, Tensor] = {}
        self._ready: set[_Place] = set()
        self._makers: dict[_Place, Any] = {}  # params that can quantise what they write

    def forget(self, buffer: Any) -> None:
        """The buffer is written: what was known of its bytes is no more."""
        written = _Place.of(buffer)
        self._ready = {place for place in self._ready if not place.overlaps(written)}
        self._makers = {place: params for place, params in self._makers.items() if not place.overlaps(written)}

    def made_by(self, params: Any, out: Any) -> None:
        self._makers[_Place.of(out)] = params

    def of(self, x: Any) -> tuple[Any, int]:
        """Params that must be recorded first, or None, and the address of x quantised."""
        place = _Place.of(x)
        if place not in self._memory:
            self._memory[place] = self._arena.take(_C.quantized_bytes(self._rows[x.per], x.width))
        address = self._memory[place].data_ptr()
        if place in self._ready:
            return None, address
        self._ready.add(place)
        if place in self._makers:
            self._makers[place].quantized = address
            return None, address
        return params_of.quantize_rows(x.tensor, address), address


class _Place(NamedTuple):
    """Where a buffer lies: of two column ranges of one buffer each spans the other's, and counts as overlapping it."""

    begin: int
    end: int
    width: int

    @staticmethod
    def of(buffer: Any) -> _Place:
        begin = buffer.tensor.data_ptr()
        elements = (len(buffer.tensor) - 1) * buffer.tensor.stride(0) + buffer.width
        return _Place(begin, begin + elements * buffer.tensor.element_size(), buffer.width)

    def overlaps(self, other: _Place) -> bool:
        return self.begin < other.end and other.begin < self.end


def _heads(op: str, buffer: Any, head_dim: int) -> Tensor:
    """[rows, width / head_dim, head_dim], a view."""
    if buffer.width % head_dim:
        raise InvalidInput(f"{op}: a buffer's width is {buffer.width}; give a multiple of head_dim {head_dim}")
    return buffer.tensor.unflatten(1, (-1, head_dim))


def _same(what: str, given: object, of: str, expected: object) -> None:
    if given != expected:
        raise InvalidInput(f"{what} is {given}, {of} {expected}; they must be equal")


def _per(what: str, buffer: Any, per: str) -> None:
    if buffer.per != per:
        raise InvalidInput(f"{what} is a buffer per {buffer.per}; give one per {per}")


def _vector(what: str, tensor: Tensor, size: int) -> None:
    if tensor.dtype != torch.float32 or list(tensor.shape) != [size] or not tensor.is_contiguous():
        raise InvalidInput(f"{what} is {_words(tensor)}; give a contiguous float32 tensor of {size}")


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"
