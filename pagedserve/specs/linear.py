# SPDX-License-Identifier: Apache-2.0
"""Projections, embeddings, and the choice of rows between them."""

from collections.abc import Iterator

from pagedserve.specs.spec import Case, OpSpec, ScalarSpec, TensorSpec, WeightSpec

FORMATS = ("f32", "bf16", "q8", "q4")
F32 = ("float32", "float64")


def linear_cases() -> Iterator[Case]:
    for weight in FORMATS:
        for num_tokens, in_features, out_features in ((1, 576, 192), (5, 64, 37), (33, 1536, 16), (0, 32, 8)):
            sizes = {"num_tokens": num_tokens, "in_features": in_features, "out_features": out_features}
            words = f"linear-{weight}-{num_tokens}x{in_features}x{out_features}"
            yield Case(words, sizes, {"x": "float32", "weight": weight})
        sizes = {"num_tokens": 3, "in_features": 96, "out_features": 40}
        yield Case(f"linear-{weight}-bias", sizes, {"x": "float32", "weight": weight}, {"bias": True})
        yield Case(f"linear-{weight}-accumulate", sizes, {"x": "float32", "weight": weight}, {"accumulate": True})


def embed_cases() -> Iterator[Case]:
    for weight in FORMATS:
        sizes = {"num_tokens": 5, "vocab_size": 50, "hidden": 96}
        yield Case(f"embed-{weight}", sizes, {"weight": weight}, {"scale": 2.5})


def take_cases() -> Iterator[Case]:
    yield Case("take_rows", {"num_tokens": 7, "num_rows": 4, "hidden": 100}, {"x": "float32"})


LINEAR = OpSpec(
    name="linear",
    formula="out = x W^T (+ bias) (+ out); q8 and q4 weights quantise x to int8 per 32 elements",
    tensors=(
        TensorSpec("x", "num_tokens in_features", F32),
        WeightSpec("weight", "out_features in_features"),
        TensorSpec("bias", "out_features", ("=x",), optional=True),
        TensorSpec("out", "num_tokens out_features", ("=x",), mutated=True, made=True),
    ),
    scalars=(ScalarSpec("accumulate", "bool", False),),
    reference="linear.linear",
    flops=lambda n: 2 * n["num_tokens"] * n["in_features"] * n["out_features"],
    bytes=lambda n: n["weight_nbytes"] + n["num_tokens"] * (n["in_features"] + n["out_features"]) * n["x_bytes"],
    cases=linear_cases,
    dispatch=("x",),
)

EMBED = OpSpec(
    name="embed",
    formula="out[t] = scale * weight[token_ids[t]]",
    tensors=(
        TensorSpec("token_ids", "num_tokens", ("int32",)),
        WeightSpec("weight", "vocab_size hidden"),
        TensorSpec("out", "num_tokens hidden", F32, mutated=True, made=True),
    ),
    scalars=(ScalarSpec("scale", "float", 1.0),),
    reference="linear.embed",
    flops=lambda n: n["num_tokens"] * n["hidden"],
    bytes=lambda n: n["num_tokens"] * (n["weight_nbytes"] // n["vocab_size"] + n["hidden"] * n["out_bytes"]),
    cases=embed_cases,
    dispatch=("out",),
)

TAKE_ROWS = OpSpec(
    name="take_rows",
    formula="out[r] = x[rows[r]]",
    tensors=(
        TensorSpec("x", "num_tokens hidden", F32),
        TensorSpec("rows", "num_rows", ("int32",)),
        TensorSpec("out", "num_rows hidden", ("=x",), mutated=True, made=True),
    ),
    scalars=(),
    reference="linear.take_rows",
    flops=lambda n: 0,
    bytes=lambda n: 2 * n["num_rows"] * n["hidden"] * n["x_bytes"],
    cases=take_cases,
    dispatch=("x",),
)

SPECS = (LINEAR, EMBED, TAKE_ROWS)
