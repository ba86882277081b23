# SPDX-License-Identifier: Apache-2.0
"""What a model is: sizes, norms, rotary embedding, windows. Read from config.json or from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass

from pagedserve.errors import ModelError

FAMILIES = {
    "llama": "Llama 2 and 3, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3, dense",
    "gemma3": "Gemma 3, text only",
}
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu_tanh")
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # of any axis: larger numbers are a corrupt file's


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: its base, and how it is stretched beyond the length it was trained on.

    Attributes:
        kind: "default", "linear", "llama3" or "yarn".
        factor: positions stretch by this.
        original_context: tokens, before stretching; llama3 and yarn.
        low_freq_factor, high_freq_factor: llama3.
        beta_fast, beta_slow, truncate: yarn's ramp, and whether its ends are rounded to whole dimensions.
        attention_factor: yarn: multiplies cosines and sines.
        frequency_factors: divide the frequencies one by one where a file gives them itself; [head_dim / 2] or empty.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A model of the Llama family. Sizes count elements, lengths count tokens.

    Attributes:
        family: a key of FAMILIES.
        windows: [num_layers], the keys a query of that layer sees, itself included; 0: all.
        rope: of every layer; local_rope of the layers with a window where they have one of their own.
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
        if self.rope.frequency_factors and len(self.rope.frequency_factors) * 2 != self.head_dim:
            raise ModelError(f"{len(self.rope.frequency_factors)} rotary factors for a head_dim of {self.head_dim}")

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


def check_rope_kind(kind: object, source: str) -> str:
    """kind, or a ModelError that lists the kinds there are."""
    if kind not in ROPE_KINDS:
        raise ModelError(f"{source}: rotary scaling {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    return str(kind)
