# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: hands checked tensors to the kernels of pagedserve._C as params structs.

Each Python thread has a team of its own, so calls from several threads run beside each other. PAGEDSERVE_THREADS and
PAGEDSERVE_CPU_ISA are read at each call.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pagedserve import _C, settings
from pagedserve.errors import BackendUnavailable

DTYPES = {
    torch.float32: _C.DType.f32,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
    torch.int8: _C.DType.i8,
    torch.float8_e4m3fn: _C.DType.f8e4m3,
}


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


def address(tensor: Tensor | None) -> int:
    """A tensor's first element; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def kv_pages(pages: Tensor, scales: Tensor | None) -> _C.KvPages:
    """Keys or values of one layer."""
    page_stride, token_stride, head_stride, _ = pages.stride()
    scale_strides = (0, 0, 0) if scales is None else scales.stride()
    return _C.KvPages(
        data=pages.data_ptr(),
        scales=address(scales),
        page_stride=page_stride,
        token_stride=token_stride,
        head_stride=head_stride,
        scale_page_stride=scale_strides[0],
        scale_token_stride=scale_strides[1],
        scale_head_stride=scale_strides[2],
        dtype=DTYPES[pages.dtype],
    )


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    tree_mask: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    q_len: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> None:
    _attention(
        q, k_pages, v_pages, page_table, kv_lens, None, tree_mask, sinks, alibi_slopes, k_scales, v_scales,
        out, lse, q_len, scale, window, soft_cap,
    )  # fmt: skip


def paged_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    scale: float,
    window: int,
    soft_cap: float,
) -> None:
    _attention(
        q, k_pages, v_pages, page_table, kv_lens, q_starts, None, sinks, alibi_slopes, k_scales, v_scales,
        out, lse, 0, scale, window, soft_cap,
    )  # fmt: skip


def _attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    kv_lens: Tensor,
    q_starts: Tensor | None,
    tree_mask: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    q_len: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> None:
    _, page_size, num_kv_heads, head_dim = k_pages.shape
    params = _C.PagedAttentionParams(
        q=q.data_ptr(),
        out=out.data_ptr(),
        lse=address(lse),
        k=kv_pages(k_pages, k_scales),
        v=kv_pages(v_pages, v_scales),
        page_table=page_table.data_ptr(),
        kv_lens=kv_lens.data_ptr(),
        q_starts=address(q_starts),
        tree_mask=address(tree_mask),
        sinks=address(sinks),
        alibi_slopes=address(alibi_slopes),
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        out_token_stride=out.stride(0),
        out_head_stride=out.stride(1),
        page_table_stride=page_table.stride(0),
        num_seqs=len(kv_lens),
        q_len=q_len,
        num_q_heads=q.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        window=window,
        scale=scale,
        soft_cap=soft_cap,
        q_dtype=DTYPES[q.dtype],
    )
    _run(_C.paged_attention, params)


def merge_states(o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> None:
    num_states, num_tokens, num_heads, head_dim = o.shape
    params = _C.MergeStatesParams(
        states=o.data_ptr(),
        state_lse=lse.data_ptr(),
        out=out.data_ptr(),
        lse=out_lse.data_ptr(),
        num_tokens=num_tokens,
        num_states=num_states,
        num_heads=num_heads,
        head_dim=head_dim,
        dtype=DTYPES[o.dtype],
    )
    _run(_C.merge_states, params)


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slot_mapping: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> None:
    num_tokens, num_kv_heads, head_dim = k.shape
    params = _C.AppendKvParams(
        k=k.data_ptr(),
        v=v.data_ptr(),
        k_pages=kv_pages(k_pages, k_scales),
        v_pages=kv_pages(v_pages, v_scales),
        slot_mapping=slot_mapping.data_ptr(),
        num_tokens=num_tokens,
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v_token_stride=v.stride(0),
        v_head_stride=v.stride(1),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=k_pages.shape[1],
        src_dtype=DTYPES[k.dtype],
    )
    _run(_C.append_kv, params)


def copy_pages(src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor) -> None:
    item_bytes = src.element_size()
    params = _C.CopyPagesParams(
        src=src.data_ptr(),
        dst=dst.data_ptr(),
        src_pages=src_pages.data_ptr(),
        dst_pages=dst_pages.data_ptr(),
        num_copies=len(src_pages),
        page_bytes=src[:1].numel() * item_bytes,
        src_page_stride_bytes=src.stride(0) * item_bytes,
        dst_page_stride_bytes=dst.stride(0) * item_bytes,
    )
    _C.copy_pages(params, TEAMS.get())


def rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, accumulate: bool) -> None:
    num_tokens, num_heads, hidden = x.shape
    params = _C.RmsNormParams(
        x=x.data_ptr(),
        residual=address(residual),
        out=out.data_ptr(),
        weight=weight.data_ptr(),
        num_tokens=num_tokens,
        x_token_stride=x.stride(0),
        x_head_stride=x.stride(1),
        residual_token_stride=0 if residual is None else residual.stride(0),
        out_token_stride=out.stride(0),
        out_head_stride=out.stride(1),
        num_heads=num_heads,
        hidden=hidden,
        accumulate=accumulate,
        eps=eps,
        dtype=DTYPES[x.dtype],
    )
    _run(_C.rms_norm, params)


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool) -> None:
    num_tokens, num_heads, head_dim = x.shape
    params = _C.RopeParams(
        x=x.data_ptr(),
        positions=positions.data_ptr(),
        cos_sin=cos_sin.data_ptr(),
        num_tokens=num_tokens,
        token_stride=x.stride(0),
        head_stride=x.stride(1),
        max_position=cos_sin.shape[0],
        num_heads=num_heads,
        head_dim=head_dim,
        rotary_dim=cos_sin.shape[1],
        interleaved=interleaved,
        dtype=DTYPES[x.dtype],
    )
    _run(_C.rope, params)


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    _act_mul(gate_up, out, _C.Activation.silu)


def gelu_mul(gate_up: Tensor, out: Tensor) -> None:
    _act_mul(gate_up, out, _C.Activation.gelu_tanh)


def _act_mul(gate_up: Tensor, out: Tensor, activation: _C.Activation) -> None:
    params = _C.ActMulParams(
        gate_up=gate_up.data_ptr(),
        out=out.data_ptr(),
        num_tokens=len(out),
        gate_up_stride=gate_up.stride(0),
        out_stride=out.stride(0),
        intermediate=out.shape[1],
        activation=activation,
        dtype=DTYPES[out.dtype],
    )
    _run(_C.act_mul, params)


def take_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    params = _C.TakeRowsParams(
        x=x.data_ptr(),
        rows=rows.data_ptr(),
        out=out.data_ptr(),
        num_rows=len(rows),
        x_stride=x.stride(0),
        out_stride=out.stride(0),
        hidden=x.shape[1],
    )
    _run(_C.take_rows, params)


def soft_cap(x: Tensor, cap: float) -> None:
    params = _C.SoftCapParams(
        x=x.data_ptr(),
        num_tokens=len(x),
        x_stride=x.stride(0),
        hidden=x.shape[1],
        cap=cap,
    )
    _run(_C.soft_cap, params)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    seeds: Tensor,
    offsets: Tensor,
    history: Tensor,
    history_starts: Tensor,
    output_starts: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
    top_tokens: Tensor,
    top_logprobs: Tensor,
) -> None:
    params = _C.SampleParams(
        logits=logits.data_ptr(),
        temperature=temperature.data_ptr(),
        top_k=top_k.data_ptr(),
        top_p=top_p.data_ptr(),
        min_p=min_p.data_ptr(),
        repetition=repetition.data_ptr(),
        presence=presence.data_ptr(),
        frequency=frequency.data_ptr(),
        seeds=seeds.data_ptr(),
        offsets=offsets.data_ptr(),
        history=history.data_ptr(),
        history_starts=history_starts.data_ptr(),
        output_starts=output_starts.data_ptr(),
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        top_tokens=top_tokens.data_ptr(),
        top_logprobs=top_logprobs.data_ptr(),
        logits_stride=logits.stride(0),
        num_rows=logits.shape[0],
        vocab_size=logits.shape[1],
        num_top=top_tokens.shape[1],
    )
    _run(_C.sample, params)
