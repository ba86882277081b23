# SPDX-License-Identifier: Apache-2.0
"""ModelConfig from a Hugging Face config.json. Releases 4 and 5 of transformers write the rotary fields differently."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagedserve.errors import ModelError
from pagedserve.models.config import ModelConfig, Rope, layer_count, unsupported

MODEL_TYPES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is a ModelError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path} is {path.stat().st_size} bytes; at most {_MAX_JSON_BYTES} are read")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON object is expected, not a {type(value).__name__}")
    return value


class _Fields:
    """Typed look-ups in config.json; null counts as missing."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def _get(self, key: str, default: Any, types: tuple[type, ...], expected: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.source}: {key} is missing; this model needs it")
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ModelError(f"{self.source}: {key} is {value!r}; {expected} is expected")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._get(key, default, (int,), "a whole number"))

    def number(self, key: str, default: float | None = None) -> float:
        value = float(self._get(key, default, (int, float), "a number"))
        if not math.isfinite(value):
            raise ModelError(f"{self.source}: {key} is {value}; a finite number is expected")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, default, (bool,), "true or false"))

    def group(self, key: str) -> _Fields:
        return _Fields(self._get(key, {}, (dict,), "an object"), f"{self.source}: {key}")


def from_huggingface(values: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """The ModelConfig of a parsed config.json.

    Raises:
        ModelError: an architecture, activation, rotary scaling or quantisation that is not supported, or a field that
            is missing or of the wrong type; the message names it and lists what is supported.
    """
    fields = _Fields(values, source)
    family = _family(fields)
    gemma = family == "gemma3"
    num_layers = layer_count(fields.integer("num_hidden_layers"), source)
    num_q_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    attention_bias = fields.flag("attention_bias", False)
    head_dim = fields.integer("head_dim", {"qwen3": 128, "gemma3": 256}.get(family, hidden_size // max(num_q_heads, 1)))
    if gemma and fields.flag("use_bidirectional_attention", False):
        raise unsupported(source, "attention in both directions (use_bidirectional_attention)")
    rope, local_rope = _ropes(fields, family)
    scalar = fields.number("query_pre_attn_scalar", 256.0) if gemma else float(head_dim)
    if scalar <= 0:
        raise ModelError(f"{source}: query_pre_attn_scalar is {scalar}; it must be positive")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_q_heads=num_q_heads,
        num_kv_heads=fields.integer("num_key_value_heads", 8 if family == "mistral" else num_q_heads),
        head_dim=head_dim,
        context_length=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(fields, family, num_layers),
        activation=_activation(fields, gemma),
        qkv_bias=family == "qwen2" or (attention_bias and family != "mistral"),
        o_bias=attention_bias and family in ("llama", "qwen3", "gemma3"),
        mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        qk_norm=family in ("qwen3", "gemma3"),
        sandwich_norms=gemma,
        embed_scale=math.sqrt(max(hidden_size, 0)) if gemma else 1.0,
        attention_scale=scalar**-0.5,
        attention_soft_cap=fields.number("attn_logit_softcapping", 0.0) if gemma else 0.0,
        logit_soft_cap=fields.number("final_logit_softcapping", 0.0) if gemma else 0.0,
        tied=fields.flag("tie_word_embeddings", gemma),
    )


def _family(fields: _Fields) -> str:
    """The family of a config.json, after refusing what is not supported of it."""
    model_type = fields.values.get("model_type")
    if model_type not in MODEL_TYPES:
        raise unsupported(fields.source, f"model_type {model_type!r}")
    architectures = fields.values.get("architectures") or []
    if architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise unsupported(fields.source, f"architecture {architectures}, which does not predict the next token,")
    quantization = fields.values.get("quantization_config") or fields.values.get("compression_config")
    if quantization:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{fields.source}: quantisation {method!r} is not supported; supported: float32, float16 and bfloat16 "
            "safetensors (load_model can quantise them to q8 or q4), and GGUF files"
        )
    return MODEL_TYPES[model_type]


def _activation(fields: _Fields, gemma: bool) -> str:
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    given = fields.values.get(key) or default
    if given not in _ACTIVATIONS:
        raise ModelError(f"{fields.source}: {key} {given!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[given]


def _windows(fields: _Fields, family: str, num_layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 for none."""
    if family == "llama":
        return (0,) * num_layers
    if family == "mistral":
        # Null turns the window off; only a missing key has a default.
        window = fields.integer("sliding_window", 0) if "sliding_window" in fields.values else 4096
        return (_window(window, fields),) * num_layers
    if family == "gemma3":
        window = _window(fields.integer("sliding_window", 4096), fields)
        pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
        if pattern < 1:
            raise ModelError(f"{fields.source}: sliding_window_pattern is {pattern}; it must be positive")
        default = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]
    else:
        used = fields.flag("use_sliding_window", False)
        window = _window(fields.integer("sliding_window", 4096), fields) if used else 0
        first = fields.integer("max_window_layers", 28)
        default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers)]
    layer_types = fields.values.get("layer_types") or default
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ModelError(f"{fields.source}: layer_types must be a list of {num_layers}")
    if unknown := [kind for kind in layer_types if kind not in ("sliding_attention", "full_attention")]:
        raise unsupported(fields.source, f"layer type {unknown[0]!r}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)


def _window(window: int, fields: _Fields) -> int:
    if not 0 <= window < 1 << 31:
        raise ModelError(f"{fields.source}: sliding_window is {window}; 0 to 2^31 are supported")
    return window


def _ropes(fields: _Fields, family: str) -> tuple[Rope, Rope | None]:
    """The rotary embeddings: of all layers, and of Gemma's windowed layers."""
    parameters = fields.group("rope_parameters")
    if family != "gemma3":
        if parameters.values:
            return _rope(parameters, 10_000.0, fields), None
        scaling = fields.group("rope_scaling")
        return _rope(scaling, fields.number("rope_theta", 10_000.0), fields), None
    if parameters.values:
        return (
            _rope(parameters.group("full_attention"), 1_000_000.0, fields),
            _rope(parameters.group("sliding_attention"), 10_000.0, fields),
        )
    scaling = fields.group("rope_scaling")
    local = Rope(theta=fields.number("rope_local_base_freq", 10_000.0))
    return _rope(scaling, fields.number("rope_theta", 1_000_000.0), fields), local


def _rope(scaling: _Fields, theta: float, fields: _Fields) -> Rope:
    if scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{scaling.source}: partial_rotary_factor is not supported; heads are rotated whole")
    theta = scaling.number("rope_theta", theta)
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    context = {"original_max_position_embeddings": fields.integer("max_position_embeddings")}
    given = {key: value for key, value in scaling.values.items() if value is not None}
    return Rope(theta, {**context, **given, "rope_type": kind})
