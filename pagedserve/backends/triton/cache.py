# SPDX-License-Identifier: Apache-2.0
"""The launches of the ops that write pages."""

from __future__ import annotations

import torch
from torch import Tensor

from pagedserve.backends.operands import AppendKv
from pagedserve.backends.triton.kernels.append_kv import append_kv_kernel
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


def page_arguments(name: str, pages: Tensor, scales: Tensor | None) -> dict[str, object]:
    """Pages "k" or "v", their scales, and the strides of both."""
    arguments: dict[str, object] = {f"{name}_pages": as_codes(pages), f"{name}_scales": scales}
    strides = (0, 0, 0) if scales is None else scales.stride()
    for axis, page_stride, scale_stride in zip(("page", "row", "head"), pages.stride()[:3], strides, strict=True):
        infix = "page_head" if axis == "head" else axis
        arguments[f"{name}_{infix}_stride"] = page_stride
        arguments[f"{name}s_{axis}_stride"] = scale_stride
    return arguments


def append_kv(target: Target, call: AppendKv) -> list[Launch]:
    k, v = call.k, call.v
    num_tokens, num_heads, head_dim = k.shape
    config = target.config("append_kv", head_dim=head_dim)
    heads = min(power_of_two(num_heads), config["heads"])
    return [
        Launch(
            append_kv_kernel,
            (ceil_div(num_heads, heads), num_tokens, 2),
            {
                "k": k,
                "v": v,
                "slot_mapping": call.slot_mapping,
                "k_token_stride": k.stride(0),
                "k_head_stride": k.stride(1),
                "v_token_stride": v.stride(0),
                "v_head_stride": v.stride(1),
                "num_heads": num_heads,
                **page_arguments("k", call.k_pages, call.k_scales),
                **page_arguments("v", call.v_pages, call.v_scales),
            },
            {
                "PAGE_SIZE": call.k_pages.shape[1],
                "HEAD_DIM": head_dim,
                "BLOCK_D": power_of_two(head_dim, 2),
                "HEADS": heads,
                "KIND": kind_of(call.k_pages),
            },
            num_warps=config["num_warps"],
            measured=config.measured,
        )
    ]
