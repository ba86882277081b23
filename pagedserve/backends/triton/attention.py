# SPDX-License-Identifier: Apache-2.0
"""The launches of attention over pages."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from pagedserve.backends.operands import Attention
from pagedserve.backends.triton.cache import kind_of, pages_argument, rows_argument
from pagedserve.backends.triton.kernels.attention_tiles import AttentionShape
from pagedserve.backends.triton.kernels.merge_states import merge_states_kernel
from pagedserve.backends.triton.kernels.paged_decode import paged_decode_kernel
from pagedserve.backends.triton.kernels.paged_prefill import paged_prefill_kernel
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.sizes import ceil_div, power_of_two
from pagedserve.backends.triton.target import Target

SPLIT_TOKENS = 256  # as every backend cuts a sequence
LARGEST_BLOCK_M = 64  # rows of a strand of decode
MERGE_ELEMENTS = 4096  # of partial results that a program merges at once: 32 registers a thread of 128
CODE_UNITS = {"float": 1.0, "int8": 128.0, "fp8": 512.0, "int4": 8.0}
DOTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def dot_type(q: Tensor, k_pages: Tensor) -> tl.dtype:
    """What matrix products take: q's type where the pages' values are exact in it, else float32."""
    exact = kind_of(k_pages) != "float" or k_pages.dtype == q.dtype
    return DOTS[q.dtype] if exact else tl.float32


def value_dot_type(q: Tensor, k_pages: Tensor) -> tl.dtype:
    """What weights times values take: codes go with float16, whose weights are eight times as exact as bfloat16's."""
    dot = dot_type(q, k_pages)
    return tl.float16 if kind_of(k_pages) != "float" and dot == tl.bfloat16 else dot


def _element_bits(q: Tensor, k_pages: Tensor) -> int:
    """Of what a matrix product takes where that is float32, else of what a page holds."""
    if dot_type(q, k_pages) == tl.float32:
        return 32
    return 4 if kind_of(k_pages) == "int4" else 8 * k_pages.element_size()


def _shared_arguments(call: Attention) -> dict[str, Any]:
    return {
        "q": rows_argument(call.q),
        "k": pages_argument(call.k_pages, call.k_scales),
        "v": pages_argument(call.v_pages, call.v_scales),
        "page_table": call.page_table,
        "table_stride": call.page_table.stride(0),
        "kv_lens": call.kv_lens,
        "sinks": call.sinks,
        "alibi_slopes": call.alibi_slopes,
        "out": rows_argument(call.out),
        "lse": call.lse,
        "num_kv_heads": call.k_pages.shape[2],
        "window": int(call.window),
        "scale": float(call.scale),
        "soft_cap": float(call.soft_cap),
    }


def _shape(target: Target, call: Attention, block_m: int, block_n: int) -> AttentionShape:
    q, k_pages = call.q, call.k_pages
    head_dim, page_size, num_kv_heads = q.shape[2], k_pages.shape[1], k_pages.shape[2]
    kind = kind_of(k_pages)
    return AttentionShape(
        group_size=q.shape[1] // num_kv_heads,
        page_size=page_size,
        head_dim=head_dim,
        block_m=block_m,
        block_n=block_n,
        block_d=power_of_two(head_dim, 16),
        kind=kind,
        code_unit=CODE_UNITS[kind],
        converts_fp8=target.converts_fp8,
        dot=dot_type(q, k_pages),
        dot_v=value_dot_type(q, k_pages),
        has_soft_cap=call.soft_cap > 0,
        has_window=call.window > 0,
    )


def paged_decode(target: Target, call: Attention) -> list[Launch]:
    """The call's workspace is the CUDA backend's; what is needed here is made here."""
    q, k_pages, q_len = call.q, call.k_pages, call.q_len
    num_seqs, max_pages = call.page_table.shape
    num_kv_heads, head_dim = k_pages.shape[2], q.shape[2]
    num_rows = q_len * q.shape[1] // num_kv_heads
    block_m = min(power_of_two(num_rows, 16), LARGEST_BLOCK_M)
    facts = {"head_dim": head_dim, "element_bits": _element_bits(q, k_pages), "block_m": block_m}
    config = target.config("paged_decode", **facts)
    attention_shape = _shape(target, call, block_m, config["block_n"])
    strands = num_kv_heads * ceil_div(num_rows, block_m)
    max_splits = max(ceil_div(max_pages * k_pages.shape[1], SPLIT_TOKENS), 1)
    # Enough programs to fill the device; a sequence's own length decides how many of its workers find a split.
    wanted = target.num_processors * config["programs_per_processor"]
    num_workers = min(max_splits, max(ceil_div(wanted, max(num_seqs * strands, 1)), 1))
    rows = min(num_rows, block_m)
    merge_rows = power_of_two(rows)
    merge = min(max(MERGE_ELEMENTS // (merge_rows * attention_shape.block_d), 2), 32)
    split_o = split_lse = arrivals = None
    if max_splits > 1:
        shape = (num_seqs, strands, max_splits, rows)
        split_o = q.new_empty((*shape, head_dim), dtype=torch.float32)
        split_lse = q.new_empty(shape, dtype=torch.float32)
        arrivals = q.new_zeros((num_seqs, strands), dtype=torch.int32)
    arguments = _shared_arguments(call) | {
        "tree_mask": call.tree_mask,
        "split_o": split_o,
        "split_lse": split_lse,
        "arrivals": arrivals,
        "num_workers": num_workers,
        "max_splits": max_splits,
        "q_len": q_len,
        "num_rows": num_rows,
    }
    constants = {
        "SHAPE": attention_shape,
        "SPLIT": SPLIT_TOKENS,
        "ROWS": rows,
        "MERGE_ROWS": merge_rows,
        "MERGE": merge,
    }
    grid = (strands, num_workers, num_seqs)
    return [
        Launch.configured(
            paged_decode_kernel,
            grid,
            arguments,
            constants,
            config,
        )
    ]


def paged_prefill(target: Target, call: Attention) -> list[Launch]:
    q, k_pages = call.q, call.k_pages
    num_tokens, num_q_heads, head_dim = q.shape
    num_seqs, num_kv_heads = call.page_table.shape[0], k_pages.shape[2]
    config = target.config("paged_prefill", head_dim=head_dim, element_bits=_element_bits(q, k_pages))
    block_m = config["block_m"]
    # A tile for each BLOCK_M rows, and one for each sequence's ragged end.
    num_tiles = num_tokens * (num_q_heads // num_kv_heads) // block_m + num_seqs if num_seqs else 0
    return [
        Launch.configured(
            paged_prefill_kernel,
            (num_tiles, num_kv_heads),
            _shared_arguments(call) | {"q_starts": call.q_starts, "num_seqs": num_seqs},
            {"SHAPE": _shape(target, call, block_m, config["block_n"])},
            config,
        )
    ]


def merge_states(target: Target, o: Tensor, lse: Tensor, out: Tensor, out_lse: Tensor) -> list[Launch]:
    num_states, num_tokens, num_heads, head_dim = o.shape
    num_rows = num_tokens * num_heads
    config = target.config("merge_states", head_dim=head_dim)
    return [
        Launch.configured(
            merge_states_kernel,
            (num_rows,),
            {"o": o, "lse": lse, "out": out, "out_lse": out_lse, "num_states": num_states, "num_rows": num_rows},
            {"HEAD_DIM": head_dim, "BLOCK": power_of_two(head_dim)},
            config,
        )
    ]
