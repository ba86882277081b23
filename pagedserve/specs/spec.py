# SPDX-License-Identifier: Apache-2.0
"""What an op is, as data. No tensor library is imported here: dtypes are names, shapes are names of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

FLOATS = ("float32", "bfloat16", "float16", "float64")
QUANTISED = ("int8", "float8_e4m3fn", "int4")
PACKED = {"int4": 2}  # elements that lie in one item of the last axis; int4 lies in uint8

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "float8_e4m3fn": 1,
    "int4": 0.5,
    "bool": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}


@dataclass(frozen=True)
class Axis:
    """A size: the product of named sizes and a number, plus a number. "num_seqs+1", "2*intermediate"."""

    text: str
    names: tuple[str, ...]
    factor: int
    plus: int
    optional: bool  # "num_heads?": a tensor without this axis has one of it
    plain: str | None  # the name, where the axis is nothing but that

    @staticmethod
    def parse(text: str) -> Axis:
        optional = text.endswith("?")
        text = text.rstrip("?")
        product, _, plus = text.partition("+")
        parts = [part.strip() for part in product.split("*")]
        names = tuple(part for part in parts if not part.isdecimal())
        factor = 1
        for part in parts:
            factor *= int(part) if part.isdecimal() else 1
        plain = names[0] if text == names[0] else None
        return Axis(text, names, factor, int(plus or 0), optional, plain)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an op.

    Attributes:
        shape: names of axes, as in "num_tokens num_q_heads head_dim"; "..." stands for any further axes.
        dtypes: allowed ones; "=q" means the dtype of q, "^q" the dtype of q's arithmetic: float64 where q is, else
            float32. "int4": two codes a byte, so the tensor is uint8 and its last axis half of what shape says.
        zeros_beside: another tensor of the op; where the caller gives neither, this is zeros, axes that nothing else
            sizes being 0.
        layout: "last": the last axis is contiguous; "dense": all are; "any".
        made: written whole, so made by the op where the caller gives none.
    """

    name: str
    shape: str
    dtypes: tuple[str, ...]
    mutated: bool = False
    optional: bool = False
    made: bool = False
    zeros_beside: str = ""
    layout: str = "last"
    axes: tuple[Axis, ...] = field(init=False)
    any_further: bool = field(init=False)
    optional_axis: int | None = field(init=False)

    def __post_init__(self) -> None:
        texts = self.shape.split()
        object.__setattr__(self, "any_further", texts[-1] == "...")
        axes = tuple(Axis.parse(text) for text in texts if text != "...")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "optional_axis", next((i for i, axis in enumerate(axes) if axis.optional), None))


@dataclass(frozen=True)
class WeightSpec:
    """A linear layer's matrix, an `ops.Weight`, in one of its formats."""

    name: str
    shape: str
    formats: tuple[str, ...] = ("f32", "bf16", "q8", "q4")
    axes: tuple[Axis, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(Axis.parse(text) for text in self.shape.split()))


@dataclass(frozen=True)
class ScalarSpec:
    """One number of an op; type is "int", "float" or "bool". The default is what leaves the call plain."""

    name: str
    type: str
    default: float


@dataclass(frozen=True)
class Budget:
    """How far a backend may be from the float64 reference, elementwise.

    |error| <= `times_torch` * (largest error of plain torch in the op's dtype)
             + (eps of the result's dtype / 2 + `floor_eps` * eps of float32) * (largest |value|):
    what float32 leaves, and one rounding to the result's dtype. Codes of quantised pages are plain torch's own, but
    for one in a hundred, which may be `code_steps` away: what is computed before it is quantised may round to either
    side of a half.
    """

    times_torch: float = 2.0
    floor_eps: float = 4.0
    code_steps: int = 0


@dataclass(frozen=True)
class Case:
    """Sizes of one call, and what it makes use of; `ops.cases.make_inputs` turns it into tensors."""

    id: str
    sizes: Mapping[str, int]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    lens: tuple[int, ...] = ()  # kv_lens of attention
    q_lens: tuple[int, ...] = ()  # queries of each sequence, of paged_prefill


Sizes = Mapping[str, float]  # whole numbers, but for "NAME_bytes" of int4: 0.5


@dataclass(frozen=True)
class OpSpec:
    """An op: the one place its axes, dtypes, mutation, cost and error budget are written down.

    Attributes:
        reference: "module.function" in pagedserve.backends.reference, the op's definition.
        dispatch: tensors whose dtype a backend may refuse.
        features: optional tensors and scalars a backend may lack.
        flops, bytes: of a call, from its axes' sizes and the counts that `ops.registry.explain` adds:
            "kv_tokens" (keys read), "pairs" (query-key pairs), "NAME_bytes" (bytes an element of tensor NAME takes;
            absent where the call has no such tensor).
    """

    name: str
    formula: str
    tensors: tuple[TensorSpec | WeightSpec, ...]
    scalars: tuple[ScalarSpec, ...]
    reference: str
    flops: Callable[[Sizes], float]
    bytes: Callable[[Sizes], float]
    cases: Callable[[], Iterable[Case]]
    dispatch: tuple[str, ...]
    budget: Budget = Budget()
    features: tuple[str, ...] = ()
