# SPDX-License-Identifier: Apache-2.0
"""What a model is: sizes, norms, rotary embedding, windows. Read from config.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.ops import rope_table

FAMILIES = {
    "llama": "Llama 2 and 3, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3, dense",
    "gemma3": "Gemma 3, text only",
}
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # of any axis: larger numbers are a corrupt file's


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: its base, and how it is stretched beyond the length it was trained on.

    Attributes:
        scaling: as ops.rope_table takes it, None for none.
        divisors: [head_dim / 2] the frequencies are divided by, where a file gives them itself; or empty.
    """

    theta: float = 10_000.0
    scaling: Mapping[str, Any] | None = None
    divisors: tuple[float, ...] = ()

    def table(self, head_dim: int, num_positions: int) -> Tensor:
        """[num_positions, head_dim] float32 for ops.rope: cosines, then sines."""
        return rope_table(
            head_dim, num_positions, theta=self.theta, scaling=self.scaling, divisors=self.divisors or None
        )


@dataclass(frozen=True)
class ModelConfig:
    """A model of the Llama family. Sizes count elements, lengths count tokens.

    Attributes:
        family: a key of FAMILIES.
        windows: [num_layers], the keys a query of that layer sees, itself included; 0: all.
        rope: of every layer; local_rope of the layers with a window where they have one of their own.
        activation: of the gate, "silu" or "gelu_tanh".
        qkv_bias, o_bias, mlp_bias: which linear layers have biases.
        qk_norm: RMSNorm on each head of q and k.
        sandwich_norms: a norm behind attention and behind the MLP as well as before them.
        embed_scale: multiplies the embedding's rows.
        attention_scale: multiplies q . k.
        attention_soft_cap, logit_soft_cap: cap * tanh(x / cap); 0: off.
        tied: the embedding is the output matrix as well.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope: Rope
    windows: tuple[int, ...]
    attention_scale: float
    local_rope: Rope | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    embed_scale: float = 1.0
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_q_heads", "num_kv_heads", "head_dim"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ModelError(f"{name} is {getattr(self, name)}; 1 to {MAX_SIZE} are supported")
        if not 1 <= self.num_layers == len(self.windows) <= MAX_LAYERS:
            raise ModelError(f"{self.num_layers} layers with {len(self.windows)} windows; 1 to {MAX_LAYERS} layers")
        if self.num_q_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_q_heads} query heads are not a multiple of {self.num_kv_heads} KV heads")
        if self.head_dim % 8 or self.head_dim > 256:
            raise ModelError(f"head_dim is {self.head_dim}; supported: multiples of 8 up to 256")
        if not 1 <= self.context_length <= 1 << 31:
            raise ModelError(f"the context length is {self.context_length} tokens; 1 to 2^31 are supported")
        if not 0 <= self.norm_eps < 1:
            raise ModelError(f"the epsilon of the norms is {self.norm_eps}; 0 to 1 is supported")
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                _check_rope(rope, self.head_dim)

    @property
    def q_size(self) -> int:
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def layer_rope(self, layer: int) -> Rope:
        """The rotary embedding of a layer."""
        return self.local_rope if self.local_rope is not None and self.windows[layer] else self.rope


def layer_count(number: int, source: str) -> int:
    """number, or a ModelError: nothing may be built per layer before this is known to be sane."""
    if not 1 <= number <= MAX_LAYERS:
        raise ModelError(f"{source}: {number} layers; 1 to {MAX_LAYERS} are supported")
    return number


def unsupported(source: str, what: str) -> ModelError:
    """The refusal of an architecture, with the list of what is supported."""
    families = ", ".join(f"{name} ({models})" for name, models in FAMILIES.items())
    return ModelError(f"{source}: {what} is not supported; supported are dense decoder models of: {families}")


def _check_rope(rope: Rope, head_dim: int) -> None:
    try:
        rope.table(head_dim, 1)
    except (InvalidInput, ArithmeticError) as error:
        raise ModelError(f"the model's rotary embedding is not supported: {error}") from None
