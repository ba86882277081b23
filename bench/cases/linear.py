# SPDX-License-Identifier: Apache-2.0
"""Projections and embeddings. torch multiplies q8 and q4 weights in bfloat16: it has no such format of its own."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from bench.cases.case import BenchCase, Inputs
from pagedserve import ops

FORMATS = ("f32", "bf16", "q8", "q4")
RATES = {"f32": "float32", "bf16": "bfloat16", "q8": "int8", "q4": "int8"}
# (in_features, out_features) of the demo model: qkv, gate and up, down, the head.
LAYERS = ((576, 960), (576, 3072), (1536, 576), (576, 49152))


@functools.cache
def _weight(out_features: int, in_features: int, weight_format: str) -> ops.Weight:
    dense = torch.randn(out_features, in_features) / in_features**0.5
    return ops.Weight.from_dense(dense, weight_format)


def _copy(weight: ops.Weight) -> ops.Weight:
    return ops.Weight(weight.format, *(tensor.clone() for tensor in weight.tensors()))


@functools.cache
def _in_torch(out_features: int, in_features: int, weight_format: str) -> Tensor:
    dtype = torch.float32 if weight_format == "f32" else torch.bfloat16
    return _weight(out_features, in_features, weight_format).dense().to(dtype)


def linear(grid: str) -> list[BenchCase]:
    tokens, layers = ((1, 32, 512), LAYERS) if grid == "default" else ((2,), ((64, 16),))

    def case(num_tokens: int, in_features: int, out_features: int, weight_format: str) -> BenchCase:
        size = (out_features, in_features, weight_format)

        def make() -> Inputs:
            x, out = torch.randn(num_tokens, in_features), torch.empty(num_tokens, out_features)
            return {"x": x, "weight": _copy(_weight(*size)), "out": out}

        def prepare(inputs: Inputs) -> Inputs:
            return {"x": inputs["x"], "weight": _in_torch(*size).clone()}

        def by_torch(inputs: Inputs) -> Tensor:
            return functional.linear(inputs["x"].to(inputs["weight"].dtype), inputs["weight"]).float()

        name = f"{num_tokens}x{in_features}x{out_features}-{weight_format}"
        way = "linear" if weight_format == "f32" else "linear in bfloat16"
        return BenchCase("linear", name, make, by_torch, way, RATES[weight_format], prepare)

    return [
        case(num_tokens, *layer, weight_format)
        for weight_format in FORMATS
        for layer in layers
        for num_tokens in tokens
    ]


def embed(grid: str) -> list[BenchCase]:
    num_tokens, vocab_size, hidden = (1024, 49152, 576) if grid == "default" else (3, 20, 32)

    def case(weight_format: str) -> BenchCase:
        size = (vocab_size, hidden, weight_format)

        def make() -> Inputs:
            token_ids = torch.randint(0, vocab_size, (num_tokens,), dtype=torch.int32)
            return {"token_ids": token_ids, "weight": _weight(*size), "out": torch.empty(num_tokens, hidden)}

        def prepare(inputs: Inputs) -> Inputs:
            return {"token_ids": inputs["token_ids"], "weight": _in_torch(*size)}

        def by_torch(inputs: Inputs) -> Tensor:
            return functional.embedding(inputs["token_ids"], inputs["weight"]).float()

        name = f"{num_tokens}-of-{vocab_size}x{hidden}-{weight_format}"
        return BenchCase("embed", name, make, by_torch, "embedding", prepare=prepare)

    return [case(weight_format) for weight_format in FORMATS]


def take_rows(grid: str) -> list[BenchCase]:
    num_tokens, num_rows, hidden = (1024, 64, 576) if grid == "default" else (4, 2, 16)

    def make() -> Inputs:
        return {
            "x": torch.randn(num_tokens, hidden),
            "rows": torch.randint(0, num_tokens, (num_rows,), dtype=torch.int32),
            "out": torch.empty(num_rows, hidden),
        }

    def by_torch(inputs: Inputs) -> Tensor:
        return inputs["x"].index_select(0, inputs["rows"])

    return [BenchCase("take_rows", f"{num_rows}-of-{num_tokens}x{hidden}-f32", make, by_torch, "index_select")]
