# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token."""

from collections.abc import Iterator

from pagedserve.specs.spec import Case, OpSpec, TensorSpec


def sample_cases() -> Iterator[Case]:
    for vocab_size in (5, 1000):
        for options in ({}, {"temperature": 0.0}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}, {"repetition": 1.3}):
            words = "-".join(["sample", str(vocab_size), *options])
            yield Case(words, {"num_rows": 4, "vocab_size": vocab_size, "num_top": 3}, {"logits": "float32"}, options)


ROW_PARAMS = tuple(
    TensorSpec(name, "num_rows", (dtype,))
    for name, dtype in (
        ("temperature", "float32"),
        ("top_k", "int32"),
        ("top_p", "float32"),
        ("min_p", "float32"),
        ("repetition", "float32"),
        ("presence", "float32"),
        ("frequency", "float32"),
        ("seeds", "int64"),
        ("offsets", "int64"),
    )
)

SAMPLE = OpSpec(
    name="sample",
    formula="token = argmax over the kept of logit / temperature + noise(seed, offset, token)",
    tensors=(
        TensorSpec("logits", "num_rows vocab_size", ("float32", "float64")),
        *ROW_PARAMS,
        TensorSpec("history", "num_history", ("int32",), zeros_beside="history"),
        TensorSpec("history_starts", "num_rows+1", ("int32",), zeros_beside="history"),
        TensorSpec("output_starts", "num_rows", ("int32",), zeros_beside="history"),
        TensorSpec("tokens", "num_rows", ("int32",), mutated=True, made=True),
        TensorSpec("logprobs", "num_rows", ("=logits",), mutated=True, made=True),
        TensorSpec("top_tokens", "num_rows num_top", ("int32",), mutated=True, made=True, layout="dense"),
        TensorSpec("top_logprobs", "num_rows num_top", ("=logits",), mutated=True, made=True, layout="dense"),
    ),
    scalars=(),
    reference="sampling.sample",
    flops=lambda n: 10 * n["num_rows"] * n["vocab_size"],
    bytes=lambda n: n["num_rows"] * n["vocab_size"] * n["logits_bytes"],
    cases=sample_cases,
    dispatch=("logits",),
)

SPECS = (SAMPLE,)
