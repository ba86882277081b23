# SPDX-License-Identifier: Apache-2.0
"""What `python -m bench ops` times: for every op of pagedserve.specs, calls of real sizes, and torch's own way."""

from __future__ import annotations

from bench.cases.attention import (
    append_kv,
    attention_case,
    copy_pages,
    merge_states,
    paged_decode,
    paged_prefill,
    plan_decode,
    rope_append_kv,
)
from bench.cases.case import GRIDS, BenchCase
from bench.cases.fused import gelu_mul, rms_norm, rope, silu_mul, soft_cap
from bench.cases.linear import embed, linear, take_rows
from bench.cases.sampling import sample

FAMILIES = {
    function.__name__: function
    for function in (
        paged_decode,
        paged_prefill,
        plan_decode,
        merge_states,
        append_kv,
        rope_append_kv,
        copy_pages,
        rms_norm,
        rope,
        silu_mul,
        gelu_mul,
        soft_cap,
        linear,
        embed,
        take_rows,
        sample,
    )
}


def cases_of(op: str, grid: str) -> list[BenchCase]:
    """The calls of one op: "default", "quick" (tiny, to see that everything runs), or an attention shape of its own.

    Args:
        grid: a name of GRIDS, or for paged_decode and paged_prefill a shape as `attention_case` reads it.

    Raises:
        ValueError: there is no such op, or grid is neither a name nor a shape of it.
    """
    if op not in FAMILIES:
        raise ValueError(f"there is no op {op!r}; the ops are {', '.join(FAMILIES)}")
    if grid in GRIDS:
        return FAMILIES[op](grid)
    if op in ("paged_decode", "paged_prefill"):
        return [attention_case(op, grid)]
    raise ValueError(f"{op} has no grid {grid!r}; choose from {', '.join(GRIDS)}")


__all__ = ["FAMILIES", "GRIDS", "BenchCase", "cases_of"]
