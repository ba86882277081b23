# SPDX-License-Identifier: Apache-2.0
"""The launches of the ops that write pages."""

from __future__ import annotations

import torch
from torch import Tensor

from pagedserve.backends.operands import AppendKv, RopeAppendKv
from pagedserve.backends.triton.kernels.append_kv import append_kv_kernel
from pagedserve.backends.triton.kernels.operands import Pages, Rows
from pagedserve.backends.triton.kernels.rope_append_kv import rope_append_kv_kernel
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.sizes import ceil_div, power_of_two
from pagedserve.backends.triton.target import Target

KINDS = {torch.int8: "int8", torch.float8_e4m3fn: "fp8", torch.uint8: "int4"}


def kind_of(pages: Tensor) -> str:
    """What a row of pages holds: "float", "int8", "fp8" or "int4"."""
    return KINDS.get(pages.dtype, "float")


def as_codes(pages: Tensor) -> Tensor:
    """Pages as kernels read them: float8 as the integers of its bits."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


def rows_argument(x: Tensor) -> Rows:
    """[num_tokens, num_heads, head_dim] as kernels take it."""
    return Rows(x, x.stride(0), x.stride(1))


def pages_argument(pages: Tensor, scales: Tensor | None) -> Pages:
    """Pages of keys or values, and their scales, as kernels take them."""
    strides = (0, 0, 0) if scales is None else scales.stride()
    return Pages(as_codes(pages), *pages.stride()[:3], scales, *strides)


def append_kv(target: Target, call: AppendKv) -> list[Launch]:
    k, v = call.k, call.v
    num_tokens, num_heads, head_dim = k.shape
    config = target.config("append_kv", head_dim=head_dim)
    heads = min(power_of_two(num_heads), config["heads"])
    return [
        Launch.configured(
            append_kv_kernel,
            (num_tokens, ceil_div(num_heads, heads), 2),
            {
                "k": rows_argument(k),
                "v": rows_argument(v),
                "k_pages": pages_argument(call.k_pages, call.k_scales),
                "v_pages": pages_argument(call.v_pages, call.v_scales),
                "slot_mapping": call.slot_mapping,
                "num_heads": num_heads,
            },
            {
                "PAGE_SIZE": call.k_pages.shape[1],
                "HEAD_DIM": head_dim,
                "BLOCK_D": power_of_two(head_dim, 2),
                "HEADS": heads,
                "KIND": kind_of(call.k_pages),
            },
            config,
        )
    ]


def rope_append_kv(target: Target, call: RopeAppendKv) -> list[Launch]:
    num_tokens, num_q_heads, head_dim = call.q.shape
    num_kv_heads = call.k.shape[1]
    config = target.config("rope_append_kv", head_dim=head_dim)
    heads = min(power_of_two(num_kv_heads), config["heads"])
    return [
        Launch.configured(
            rope_append_kv_kernel,
            (num_tokens, ceil_div(num_q_heads, heads) + 2 * ceil_div(num_kv_heads, heads)),
            {
                "q": rows_argument(call.q),
                "k": rows_argument(call.k),
                "v": rows_argument(call.v),
                "positions": call.positions,
                "cos_sin": call.cos_sin,
                "slot_mapping": call.slot_mapping,
                "k_pages": pages_argument(call.k_pages, call.k_scales),
                "v_pages": pages_argument(call.v_pages, call.v_scales),
                "q_norm": call.q_norm,
                "k_norm": call.k_norm,
                "num_q_heads": num_q_heads,
                "num_kv_heads": num_kv_heads,
                "eps": float(call.eps),
            },
            {
                "PAGE_SIZE": call.k_pages.shape[1],
                "HEAD_DIM": head_dim,
                "ROTARY_DIM": call.cos_sin.shape[1],
                "BLOCK_D": power_of_two(head_dim, 2),
                "HEADS": heads,
                "KIND": kind_of(call.k_pages),
                "INTERLEAVED": bool(call.interleaved),
            },
            config,
        )
    ]
