# SPDX-License-Identifier: Apache-2.0
"""The forward of the Llama family, recorded once against a StepBuilder. Families differ by configuration alone.

    x = embed_scale * embedding[token]                            the residual stream, f32
    for each layer:
        h = norm(x);  q, k, v = h Wqkv + b;  q, k = norm of each head (QK-norm), rotated;  pages += k, v
        h = attention(q, pages) Wo + b                            x += h, or norm(h) (sandwich norms)
        g, u = norm(x) Wgu + b;  h = (act(g) * u) Wd + b          x += h, or norm(h)
    logits = soft_cap(norm(x[rows]) Wout)                         of the rows that sample only

Source: Touvron et al. 2023 (Llama); the Qwen 3 and Gemma 3 reports for QK-norm, windows and sandwich norms.
Oracle: transformers in float32, tests/models/test_llama.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.models.config import ModelConfig, Rope
from pagedserve.models.weights import LayerWeights, Linear, ModelWeights
from pagedserve.ops import Buffer, KVLayer, Step, StepBuilder


class Llama:
    """A model: its configuration and weights. `build` makes it runnable."""

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights

    def build(self, step: StepBuilder, layers: Sequence[KVLayer]) -> Step:
        """Records the forward.

        Args:
            step: a fresh builder; its limits are the largest step the result can run.
            layers: [num_layers] pages of keys and values, [num_pages, page_size, num_kv_heads, head_dim] each.

        Returns:
            The step: logits [num_rows, vocab_size] of the tokens named by inputs.logit_rows.

        Raises:
            InvalidInput: layers are not this model's.
        """
        self._check(layers)
        return _Forward(self.config, self.weights, step, layers).record()

    def _check(self, layers: Sequence[KVLayer]) -> None:
        config = self.config
        shape = (config.num_kv_heads, config.head_dim)
        given = {(layer.k.shape[2], layer.head_dim) for layer in layers}
        if len(layers) != config.num_layers or given != {shape}:
            raise InvalidInput(
                f"the pages are of {len(layers)} layers of {sorted(given)} heads x head_dim; "
                f"this model has {config.num_layers} of {shape}"
            )


class _Forward:
    """One recording: the buffers that every layer shares."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, step: StepBuilder, layers: Sequence[KVLayer]
    ) -> None:
        self.config, self.weights, self.step, self.layers = config, weights, step, layers
        self.x = step.buffer(config.hidden_size)
        self.h = step.buffer(config.hidden_size)
        qkv = step.buffer(config.q_size + 2 * config.kv_size)
        self.qkv = qkv
        self.q = qkv.columns(0, config.q_size)
        self.k = qkv.columns(config.q_size, config.q_size + config.kv_size)
        self.v = qkv.columns(config.q_size + config.kv_size, qkv.width)
        self.attended = step.buffer(config.q_size)
        self.gate_up = step.buffer(2 * config.intermediate_size)
        self.activated = step.buffer(config.intermediate_size)
        self.tables: dict[int, Tensor] = {}

    def record(self) -> Step:
        config, step, weights = self.config, self.step, self.weights
        step.embed(weights.embedding, out=self.x, scale=config.embed_scale)
        for index, layer in enumerate(weights.layers):
            self._attention(index, layer)
            self._mlp(layer)
        last = step.buffer(config.hidden_size, per="row")
        normed = step.buffer(config.hidden_size, per="row")
        logits = step.buffer(config.vocab_size, per="row")
        step.take_rows(self.x, out=last)
        step.rms_norm(last, weights.output_norm, eps=config.norm_eps, out=normed)
        step.linear(normed, weights.output, out=logits)
        if config.logit_soft_cap > 0:
            step.soft_cap(logits, config.logit_soft_cap)
        return step.build(logits)

    def _attention(self, index: int, layer: LayerWeights) -> None:
        config, step, pages = self.config, self.step, self.layers[index]
        step.rms_norm(self.x, layer.attention_norm, eps=config.norm_eps, out=self.h)
        layer.qkv.record(step, self.h, out=self.qkv)
        for heads, norm in ((self.q, layer.q_norm), (self.k, layer.k_norm)):
            if norm is not None:
                step.rms_norm(heads, norm, eps=config.norm_eps, out=heads, head_dim=config.head_dim)
        rotated = self.qkv.columns(0, config.q_size + config.kv_size)
        step.rope(rotated, self._table(config.layer_rope(index)), head_dim=config.head_dim)
        step.append_kv(self.k, self.v, pages)
        step.attention(
            self.q,
            pages,
            out=self.attended,
            scale=config.attention_scale,
            window=config.windows[index],
            soft_cap=config.attention_soft_cap,
        )
        self._add(layer.o, self.attended, layer.post_attention_norm)

    def _mlp(self, layer: LayerWeights) -> None:
        config, step = self.config, self.step
        step.rms_norm(self.x, layer.mlp_norm, eps=config.norm_eps, out=self.h)
        layer.gate_up.record(step, self.h, out=self.gate_up)
        activate = step.gelu_mul if config.activation == "gelu_tanh" else step.silu_mul
        activate(self.gate_up, out=self.activated)
        self._add(layer.down, self.activated, layer.post_mlp_norm)

    def _add(self, linear: Linear, y: Buffer, norm: Tensor | None) -> None:
        """x += linear(y), or its norm."""
        if norm is None:
            linear.record(self.step, y, out=self.x, accumulate=True)
        else:
            linear.record(self.step, y, out=self.h)
            self.step.rms_norm(self.h, norm, eps=self.config.norm_eps, out=self.x, accumulate=True)

    def _table(self, rope: Rope) -> Tensor:
        """A rotary table for every position the pages can hold, one for all layers of the same embedding."""
        if id(rope) not in self.tables:
            page_size = self.layers[0].k.shape[1]
            num_positions = min(self.config.context_length, self.step.limits.max_pages * page_size)
            self.tables[id(rope)] = rope.table(self.config.head_dim, num_positions)
        return self.tables[id(rope)]
