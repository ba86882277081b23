# SPDX-License-Identifier: Apache-2.0
"""ModelConfig from a GGUF file's metadata, as llama.cpp reads it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pagedserve.errors import ModelError
from pagedserve.models.config import ModelConfig, Rope, layer_count, unsupported
from pagedserve.models.gguf_file import GgufFile

# GGUF knows Mistral as llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
_GEMMA_PATTERN = 6  # every sixth layer attends to everything
_GEMMA_27B_LAYERS = 62


def from_gguf(file: GgufFile) -> ModelConfig:
    """The ModelConfig of a GGUF file.

    Raises:
        ModelError: an architecture or rotary scaling that is not supported, or a key that is missing or of the
            wrong type; the message names it and lists what is supported.
    """
    family = file.text("general.architecture")
    if family not in ARCHITECTURES:
        raise unsupported(str(file.path), f"architecture {family!r}")
    _refuse_experts(file, family)
    gemma = family == "gemma3"
    num_layers = layer_count(file.integer(f"{family}.block_count"), str(file.path))
    hidden_size = file.integer(f"{family}.embedding_length")
    num_q_heads = file.integer(f"{family}.attention.head_count")
    head_dim = file.integer(f"{family}.attention.key_length", hidden_size // max(num_q_heads, 1))
    if file.integer(f"{family}.attention.value_length", head_dim) != head_dim:
        raise unsupported(str(file.path), "a value_length that differs from key_length")
    if file.integer(f"{family}.rope.dimension_count", head_dim) != head_dim:
        raise unsupported(str(file.path), "a rotary embedding of a part of the head")
    rope = _rope(file, family)
    return ModelConfig(
        family=family,
        vocab_size=_vocab_size(file),
        hidden_size=hidden_size,
        intermediate_size=file.integer(f"{family}.feed_forward_length"),
        num_layers=num_layers,
        num_q_heads=num_q_heads,
        num_kv_heads=file.integer(f"{family}.attention.head_count_kv", num_q_heads),
        head_dim=head_dim,
        context_length=file.integer(f"{family}.context_length"),
        norm_eps=file.number(f"{family}.attention.layer_norm_rms_epsilon"),
        rope=rope,
        local_rope=Rope(file.number(f"{family}.rope.freq_base_swa", 10_000.0)) if gemma else None,
        windows=_windows(file, family, num_layers),
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sandwich_norms=gemma,
        embed_scale=math.sqrt(max(hidden_size, 0)) if gemma else 1.0,
        attention_scale=_attention_width(family, num_layers, hidden_size, num_q_heads, head_dim) ** -0.5,
        attention_soft_cap=file.number(f"{family}.attn_logit_softcapping", 0.0) if gemma else 0.0,
        logit_soft_cap=file.number(f"{family}.final_logit_softcapping", 0.0) if gemma else 0.0,
        tied="output.weight" not in file.tensors,
    )


def _refuse_experts(file: GgufFile, family: str) -> None:
    if file.integer(f"{family}.expert_count", 0):
        raise unsupported(str(file.path), "a mixture of experts")


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: has no tensor token_embd.weight; it is not a whole language model")
    return embedding.shape[0]


def _attention_width(family: str, num_layers: int, hidden_size: int, num_q_heads: int, head_dim: int) -> float:
    """What q . k is divided by the root of. Gemma 3 27B alone does not use its head_dim, and GGUF does not say so."""
    if family == "gemma3" and num_layers == _GEMMA_27B_LAYERS:
        return hidden_size / max(num_q_heads, 1)
    return float(max(head_dim, 1))


def _windows(file: GgufFile, family: str, num_layers: int) -> tuple[int, ...]:
    if family != "gemma3":
        return (0,) * num_layers
    window = file.integer(f"{family}.attention.sliding_window")
    if not 0 <= window < 1 << 31:
        raise ModelError(f"{file.path}: {family}.attention.sliding_window is {window}; 0 to 2^31 are supported")
    return tuple(window if (layer + 1) % _GEMMA_PATTERN else 0 for layer in range(num_layers))


def _rope(file: GgufFile, family: str) -> Rope:
    theta = file.number(f"{family}.rope.freq_base", 10_000.0)
    # Files of before scaling.type say linear by the factor alone.
    factor = file.number(f"{family}.rope.scaling.factor", file.number(f"{family}.rope.scale_linear", 1.0))
    kind = file.text(f"{family}.rope.scaling.type", "none" if factor == 1.0 else "linear")
    scaling: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = file.integer(f"{family}.rope.scaling.original_context_length")
        if factor > 0:
            weight = file.number(f"{family}.rope.scaling.attn_factor", 1.0)
            scaling["attention_factor"] = weight * (0.1 * math.log(factor) + 1.0)
    return Rope(theta, None if kind == "none" else scaling, _divisors(file))


def _divisors(file: GgufFile) -> tuple[float, ...]:
    """Llama 3's scaling, which GGUF stores as a divisor per frequency."""
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return ()
    if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 128:
        raise ModelError(
            f"{file.path}: rope_freqs.weight is {tensor.type.name} {list(tensor.shape)}; F32 [head_dim / 2]"
        )
    divisors = file.data("rope_freqs.weight").view("<f4").reshape(-1)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ModelError(f"{file.path}: rope_freqs.weight must be positive and finite")
    return tuple(float(divisor) for divisor in divisors)
