# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: hands checked tensors to the kernels of pagedserve._C as params structs.

Each Python thread has a team of its own, so calls from several threads run beside each other. PAGEDSERVE_THREADS and
PAGEDSERVE_CPU_ISA are read at each call.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pagedserve import _C, settings
from pagedserve.backends import cpu_params as params_of
from pagedserve.backends import params as shared
from pagedserve.backends.cpu_weight import PackedWeight
from pagedserve.backends.operands import AppendKv, Attention, PlanDecode, RopeAppendKv, Sample
from pagedserve.errors import BackendUnavailable
from pagedserve.specs.plan_layout import DEFAULT_BLOCKS


class _Teams(threading.local):
    """The team of this Python thread; made anew where PAGEDSERVE_THREADS has changed."""

    team: _C.Team | None = None

    def get(self) -> _C.Team:
        wanted = settings.num_threads()
        if self.team is None or self.team.num_threads != wanted:
            self.team = _C.Team(wanted)
        return self.team


TEAMS = _Teams()
SUPPORTED = {isa.name: isa for isa in _C.supported_isas()}
BEST = _C.detect_isa()


def isa() -> _C.Isa:
    """The instruction set that kernels run with."""
    wanted = settings.cpu_isa()
    if wanted is None:
        return BEST
    if wanted not in SUPPORTED:
        raise BackendUnavailable(
            f"PAGEDSERVE_CPU_ISA is {wanted!r}, which this processor lacks; it has {', '.join(SUPPORTED)}"
        )
    return SUPPORTED[wanted]


def _run(kernel: Callable[[Any, _C.Team, _C.Isa], None], params: Any) -> None:
    kernel(params, TEAMS.get(), isa())


def paged_decode(*operands: Any) -> None:
    _attention(Attention.of("paged_decode", *operands))


def paged_prefill(*operands: Any) -> None:
    _attention(Attention.of("paged_prefill", *operands))


def _attention(call: Attention) -> None:
    _run(_C.paged_attention, params_of.attention(call, bf16_products=call.q.dtype == torch.bfloat16))


def plan_decode(*operands: Any) -> None:
    call = PlanDecode.of("plan_decode", *operands)
    fields = shared.plan_decode(call, call.num_blocks or DEFAULT_BLOCKS)
    _C.plan_decode(shared.struct(_C.PlanDecodeParams, fields))


def merge_states(o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> None:
    _run(_C.merge_states, shared.struct(_C.MergeStatesParams, shared.merge_states(o, lse, out, out_lse)))


def append_kv(*operands: Any) -> None:
    _run(_C.append_kv, params_of.append_kv(AppendKv.of("append_kv", *operands)))


def rope_append_kv(*operands: Any) -> None:
    """By the kernels of its parts, in float32: nothing is rounded between them."""
    call = RopeAppendKv.of("rope_append_kv", *operands)
    q, k, v = call.q.float(), call.k.to(torch.float32, copy=True), call.v.float()
    for x, weight in ((q, call.q_norm), (k, call.k_norm)):
        if weight is not None:
            rms_norm(x, weight, None, x, call.eps, False)
        rope(x, call.positions, call.cos_sin, call.interleaved)
    _run(_C.append_kv, params_of.append_kv(replace(call, k=k, v=v)))
    if q is not call.q:
        call.q.copy_(q)


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
    _C.copy_pages(shared.struct(_C.CopyPagesParams, shared.copy_pages(src, dst, src_pages, dst_pages)), TEAMS.get())


def rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, accumulate: bool) -> None:
    _run(_C.rms_norm, params_of.rms_norm(x, weight, residual, out, eps, accumulate))


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool) -> None:
    _run(_C.rope, params_of.rope(x, positions, cos_sin, interleaved))


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    _run(_C.act_mul, params_of.act_mul(gate_up, out, _C.Activation.silu))


def gelu_mul(gate_up: Tensor, out: Tensor) -> None:
    _run(_C.act_mul, params_of.act_mul(gate_up, out, _C.Activation.gelu_tanh))


def packed(weight: Any) -> PackedWeight:
    """An ops.Weight as the kernels read it: packed at its first use, then kept with it."""
    made: PackedWeight = weight.packed("cpu", lambda w: PackedWeight(w, TEAMS.get()))
    return made


def linear(x: Tensor, weight: Any, bias: Tensor | None, out: Tensor, accumulate: bool) -> None:
    _run(_C.linear, params_of.linear(x, weight, packed(weight), bias, out, accumulate))


def embed(token_ids: Tensor, weight: Any, out: Tensor, scale: float) -> None:
    _run(_C.embed, params_of.embed(token_ids, weight, packed(weight), out, scale))


def take_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    _run(_C.take_rows, params_of.take_rows(x, rows, out))


def soft_cap(x: Tensor, cap: float) -> None:
    _run(_C.soft_cap, params_of.soft_cap(x, cap))


def sample(*operands: Any) -> None:
    _run(_C.sample, params_of.sample(Sample.of("sample", *operands)))
