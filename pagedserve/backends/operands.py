# SPDX-License-Identifier: Apache-2.0
"""What the ops with many arguments give a backend, as one value each.

A backend's function takes its op's operands in the spec's order: tensors, outputs included, then scalars. Where they
are many it takes them as `*operands` and reads them by name from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from pagedserve.specs import SPECS

Kind = TypeVar("Kind", bound="Operands")


@cache
def operand_names(op: str) -> tuple[str, ...]:
    """An op's operands in the order in which a backend is given them."""
    spec = SPECS[op]
    return tuple(entry.name for entry in (*spec.tensors, *spec.scalars))


class Operands:
    """A call's operands, by name."""

    __slots__ = ()

    @classmethod
    def of(cls: type[Kind], op: str, *operands: Any) -> Kind:
        """Operands that stand in the order of the op's spec."""
        return cls(**dict(zip(operand_names(op), operands, strict=True)))


@dataclass(slots=True, kw_only=True)
class Attention(Operands):
    """Of paged_decode and paged_prefill; what only one of them has is None or 0 for the other."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    kv_lens: Tensor
    q_starts: Tensor | None = None
    tree_mask: Tensor | None = None
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    out: Tensor
    lse: Tensor | None = None
    workspace: Tensor | None = None
    q_len: int = 0
    scale: float
    window: int = 0
    soft_cap: float = 0.0


@dataclass(slots=True, kw_only=True)
class PlanDecode(Operands):
    """Of plan_decode; num_blocks is 0 where the caller does not say."""

    kv_lens: Tensor
    workspace: Tensor
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    q_len: int
    window: int
    num_blocks: int


@dataclass(slots=True, kw_only=True)
class AppendKv(Operands):
    """Of append_kv."""

    k: Tensor
    v: Tensor
    k_pages: Tensor
    v_pages: Tensor
    slot_mapping: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class RopeAppendKv(AppendKv):
    """Of rope_append_kv."""

    q: Tensor
    positions: Tensor
    cos_sin: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float
    interleaved: bool


@dataclass(slots=True, kw_only=True)
class Sample(Operands):
    """Of sample."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seeds: Tensor
    offsets: Tensor
    history: Tensor
    history_starts: Tensor
    output_starts: Tensor
    tokens: Tensor
    logprobs: Tensor
    top_tokens: Tensor
    top_logprobs: Tensor


OPERANDS: dict[str, type[Operands]] = {
    "paged_decode": Attention,
    "paged_prefill": Attention,
    "plan_decode": PlanDecode,
    "append_kv": AppendKv,
    "rope_append_kv": RopeAppendKv,
    "sample": Sample,
}
