# SPDX-License-Identifier: Apache-2.0
"""The elementwise ops between attention and projections."""

from collections.abc import Iterator

from pagedserve.specs.spec import FLOATS, Case, OpSpec, ScalarSpec, TensorSpec

DTYPES = ("float32", "bfloat16", "float16")


def norm_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for hidden in (8, 576, 1000):
            for options in ({}, {"residual": True}, {"accumulate": True}):
                words = "-".join(["norm", dtype, str(hidden), *options])
                yield Case(words, {"num_tokens": 5, "hidden": hidden}, {"x": dtype}, options)
        yield Case(f"norm-heads-{dtype}", {"num_tokens": 5, "num_heads": 3, "hidden": 64}, {"x": dtype})


def rope_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for head_dim, rotary_dim in ((64, 64), (80, 32), (8, 8)):
            for interleaved in (False, True):
                sizes = {
                    "num_tokens": 5,
                    "num_heads": 3,
                    "head_dim": head_dim,
                    "rotary_dim": rotary_dim,
                    "max_position": 40,
                }
                words = f"rope-{dtype}-{head_dim}-{rotary_dim}-{'pairs' if interleaved else 'halves'}"
                yield Case(words, sizes, {"x": dtype}, {"interleaved": interleaved})


def act_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for intermediate in (1, 96, 1536):
            yield Case(
                f"act-{dtype}-{intermediate}", {"num_tokens": 5, "intermediate": intermediate}, {"gate_up": dtype}
            )


def soft_cap_cases() -> Iterator[Case]:
    yield Case("soft_cap", {"num_tokens": 5, "hidden": 1003}, {"x": "float32"}, {"cap": 30.0})


RMS_NORM = OpSpec(
    name="rms_norm",
    formula="out = x / sqrt(mean(x^2) + eps) * weight; residual += x first, and x is that sum; accumulate adds to out",
    tensors=(
        TensorSpec("x", "num_tokens num_heads? hidden", FLOATS),
        TensorSpec("weight", "hidden", ("^x",)),
        TensorSpec("residual", "num_tokens num_heads? hidden", ("=x",), mutated=True, optional=True),
        TensorSpec("out", "num_tokens num_heads? hidden", ("=x",), mutated=True, made=True),
    ),
    scalars=(ScalarSpec("eps", "float", 1e-6), ScalarSpec("accumulate", "bool", False)),
    reference="fused.rms_norm",
    flops=lambda n: 4 * n["num_tokens"] * n["num_heads"] * n["hidden"],
    bytes=lambda n: 2 * n["num_tokens"] * n["num_heads"] * n["hidden"] * n["x_bytes"],
    cases=norm_cases,
    dispatch=("x",),
)

ROPE = OpSpec(
    name="rope",
    formula="(a, b) = (a cos - b sin, b cos + a sin) for each pair of the first rotary_dim elements, in place",
    tensors=(
        TensorSpec("x", "num_tokens num_heads head_dim", FLOATS, mutated=True),
        TensorSpec("positions", "num_tokens", ("int32",)),
        TensorSpec("cos_sin", "max_position rotary_dim", ("^x",), layout="dense"),
    ),
    scalars=(ScalarSpec("interleaved", "bool", False),),
    reference="fused.rope",
    flops=lambda n: 3 * n["num_tokens"] * n["num_heads"] * n["rotary_dim"],
    bytes=lambda n: 2 * n["num_tokens"] * n["num_heads"] * n["rotary_dim"] * n["x_bytes"],
    cases=rope_cases,
    dispatch=("x",),
)


def _act(name: str, formula: str) -> OpSpec:
    return OpSpec(
        name=name,
        formula=formula,
        tensors=(
            TensorSpec("gate_up", "num_tokens 2*intermediate", FLOATS),
            TensorSpec("out", "num_tokens intermediate", ("=gate_up",), mutated=True, made=True),
        ),
        scalars=(),
        reference=f"fused.{name}",
        flops=lambda n: 6 * n["num_tokens"] * n["intermediate"],
        bytes=lambda n: 3 * n["num_tokens"] * n["intermediate"] * n["gate_up_bytes"],
        cases=act_cases,
        dispatch=("gate_up",),
    )


SILU_MUL = _act("silu_mul", "out = gate / (1 + exp(-gate)) * up")
GELU_MUL = _act("gelu_mul", "out = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up")

SOFT_CAP = OpSpec(
    name="soft_cap",
    formula="x = cap * tanh(x / cap), in place",
    tensors=(TensorSpec("x", "num_tokens hidden", ("float32", "float64"), mutated=True),),
    scalars=(ScalarSpec("cap", "float", 30.0),),
    reference="fused.soft_cap",
    flops=lambda n: 3 * n["num_tokens"] * n["hidden"],
    bytes=lambda n: 2 * n["num_tokens"] * n["hidden"] * n["x_bytes"],
    cases=soft_cap_cases,
    dispatch=("x",),
)

SPECS = (RMS_NORM, ROPE, SILU_MUL, GELU_MUL, SOFT_CAP)
