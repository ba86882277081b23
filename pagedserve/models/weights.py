# SPDX-License-Identifier: Apache-2.0
"""A model's weights in the order its forward uses them, read from any file that knows them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from pagedserve.models.config import ModelConfig
from pagedserve.ops import Buffer, StepBuilder, Weight

ChooseFormat = Callable[[str], str | None]
Progress = Callable[[int, int], None]


class WeightSource(Protocol):
    """A file of weights, by pagedserve's own names.

    "embedding", "output", "output_norm"; and of a layer, such as "layers.3.q": the matrices q k v o gate up down, their
    biases ("q_bias"), and the norms attention_norm q_norm k_norm post_attention_norm mlp_norm post_mlp_norm. Each
    raises ModelError where the file has no such tensor, or one of another shape. A matrix comes in the file's own
    format where none is named.
    """

    total_bytes: int
    read_bytes: int

    def matrix(self, name: str, out_features: int, in_features: int, format: str | None) -> Weight: ...
    def vector(self, name: str, size: int) -> Tensor: ...
    def finish(self) -> None:
        """Refuses tensors that nobody asked for: a model that has them is not the model that was built."""
        ...


@dataclass(frozen=True)
class Linear:
    """Projections of one input, side by side: one matrix for each run of neighbours of the same format."""

    weights: tuple[Weight, ...]
    bias: Tensor | None  # [out_features] f32

    @staticmethod
    def of(weights: Iterable[Weight], biases: Iterable[Tensor] = ()) -> Linear:
        runs = [list(run) for _, run in groupby(weights, key=lambda weight: weight.format)]
        given = list(biases)
        return Linear(
            tuple(Weight.cat(run) if len(run) > 1 else run[0] for run in runs), torch.cat(given) if given else None
        )

    def record(self, step: StepBuilder, x: Buffer, *, out: Buffer, accumulate: bool = False) -> None:
        """Records out = x W^T + bias."""
        begin = 0
        for weight in self.weights:
            end = begin + weight.out_features
            bias = None if self.bias is None else self.bias[begin:end]
            step.linear(x, weight, out=out.columns(begin, end), bias=bias, accumulate=accumulate)
            begin = end


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Norms are [hidden_size] or, of heads, [head_dim]; None where the model has none."""

    attention_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    post_mlp_norm: Tensor | None


@dataclass(frozen=True)
class ModelWeights:
    """All of a model. output is the embedding itself where they are tied."""

    embedding: Weight
    layers: tuple[LayerWeights, ...]
    output_norm: Tensor
    output: Weight

    def matrices(self) -> list[Weight]:
        """Every matrix, once."""
        of_layers = [
            weight
            for layer in self.layers
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)
            for weight in linear.weights
        ]
        return [self.embedding, *of_layers, *([] if self.output is self.embedding else [self.output])]


def read_weights(
    config: ModelConfig, source: WeightSource, choose_format: ChooseFormat, progress: Progress
) -> ModelWeights:
    """Reads a whole model, layer by layer.

    Args:
        choose_format: the format of each matrix by its name; None for the file's own.
        progress: called with bytes read and bytes in all.

    Raises:
        ModelError: a tensor is missing, of another shape, or one too many; the message names it.
    """

    def matrix(name: str, out_features: int, in_features: int) -> Weight:
        weight = source.matrix(name, out_features, in_features, choose_format(name))
        progress(source.read_bytes, source.total_bytes)
        return weight

    embedding = matrix("embedding", config.vocab_size, config.hidden_size)
    layers = tuple(_read_layer(config, source, matrix, f"layers.{index}.") for index in range(config.num_layers))
    output_norm = source.vector("output_norm", config.hidden_size)
    output = embedding if config.tied else matrix("output", config.vocab_size, config.hidden_size)
    source.finish()
    progress(source.total_bytes, source.total_bytes)
    return ModelWeights(embedding, layers, output_norm, output)


def _read_layer(
    config: ModelConfig, source: WeightSource, matrix: Callable[[str, int, int], Weight], at: str
) -> LayerWeights:
    hidden, intermediate = config.hidden_size, config.intermediate_size

    def linear(sizes: dict[str, int], in_features: int, has_bias: bool) -> Linear:
        return Linear.of(
            [matrix(at + part, size, in_features) for part, size in sizes.items()],
            [source.vector(f"{at}{part}_bias", size) for part, size in sizes.items()] if has_bias else (),
        )

    def norm(part: str, size: int, has_norm: bool = True) -> Tensor | None:
        return source.vector(at + part, size) if has_norm else None

    qkv = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
    return LayerWeights(
        attention_norm=source.vector(at + "attention_norm", hidden),
        qkv=linear(qkv, hidden, config.qkv_bias),
        q_norm=norm("q_norm", config.head_dim, config.qk_norm),
        k_norm=norm("k_norm", config.head_dim, config.qk_norm),
        o=linear({"o": hidden}, config.q_size, config.o_bias),
        post_attention_norm=norm("post_attention_norm", hidden, config.sandwich_norms),
        mlp_norm=source.vector(at + "mlp_norm", hidden),
        gate_up=linear({"gate": intermediate, "up": intermediate}, hidden, config.mlp_bias),
        down=linear({"down": hidden}, intermediate, config.mlp_bias),
        post_mlp_norm=norm("post_mlp_norm", hidden, config.sandwich_norms),
    )
