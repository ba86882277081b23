# SPDX-License-Identifier: Apache-2.0
"""The weights of a Hugging Face folder by pagedserve's names: one model.safetensors, or shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedserve.errors import ModelError
from pagedserve.models.config import ModelConfig
from pagedserve.models.config_huggingface import read_json
from pagedserve.models.extras import optional
from pagedserve.models.quant import in_format
from pagedserve.ops import Weight

_DTYPES = {"F32": "f32", "F16": "f32", "BF16": "bf16"}
_WHOLE = {"embedding": "model.embed_tokens.weight", "output": "lm_head.weight", "output_norm": "model.norm.weight"}
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


def huggingface_name(name: str, config: ModelConfig) -> str:
    """transformers' name for one of pagedserve's."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part = name.split(".")
    parts = {**_LAYER, **_SANDWICH} if config.sandwich_norms else _LAYER
    return f"model.layers.{layer}.{parts[part]}"


class SafetensorsFolder:
    """A WeightSource over a Hugging Face folder. Tensors are mapped, and copied where they are converted."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder, self._config = folder, config
        self._library = optional("safetensors", "a safetensors file")
        self._shards: dict[str, Any] = {}
        self._shard_of = self._index()
        self._unread = {name for name in self._shard_of if not name.endswith("rotary_emb.inv_freq")}
        if config.tied:
            self._unread.discard(_WHOLE["output"])
        self.total_bytes = sum((folder / shard).stat().st_size for shard in set(self._shard_of.values()))
        self.read_bytes = 0

    def _index(self) -> dict[str, str]:
        """Tensor -> file."""
        single, index = self._folder / "model.safetensors", self._folder / "model.safetensors.index.json"
        if single.is_file():
            return dict.fromkeys(self._open(single.name).keys(), single.name)
        if not index.is_file():
            raise ModelError(
                f"{self._folder}: has neither model.safetensors nor model.safetensors.index.json; weights in another "
                "form are written as safetensors by transformers' save_pretrained"
            )
        shard_of = read_json(index).get("weight_map")
        if not isinstance(shard_of, dict) or not shard_of:
            raise ModelError(f"{index}: weight_map must name a file for each tensor")
        for name, shard in shard_of.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ModelError(f"{index}: the file {shard!r} of {name} is not a plain name in this folder")
        held = {shard: set(self._open(shard).keys()) for shard in set(shard_of.values())}
        for name, shard in shard_of.items():
            if name not in held[shard]:
                raise ModelError(f"{index}: says {name} is in {shard}, which does not have it")
        return shard_of

    def _open(self, shard: str) -> Any:
        if shard not in self._shards:
            path = self._folder / shard
            try:
                self._shards[shard] = self._library.safe_open(path, framework="pt").__enter__()
            except (OSError, self._library.SafetensorError) as error:
                raise ModelError(f"{path}: cannot be read as safetensors: {error}") from None
        return self._shards[shard]

    def matrix(self, name: str, out_features: int, in_features: int, format: str | None) -> Weight:
        tensor, dtype = self._read(name, (out_features, in_features))
        return in_format(Weight.from_dense(tensor, _DTYPES[dtype]), format)

    def vector(self, name: str, size: int) -> Tensor:
        vector = self._read(name, (size,))[0].to(torch.float32)
        # Gemma's files hold what is added to 1.
        return vector + 1.0 if self._config.family == "gemma3" and name.endswith("norm") else vector

    def finish(self) -> None:
        if self._unread:
            names = ", ".join(sorted(self._unread)[:5])
            raise ModelError(
                f"{self._folder}: {len(self._unread)} tensors are not part of the model config.json describes: {names}"
            )

    def _read(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, str]:
        found = huggingface_name(name, self._config)
        if found not in self._shard_of:
            raise ModelError(f"{self._folder}: the tensor {found} is missing")
        shard = self._open(self._shard_of[found])
        description = shard.get_slice(found)
        given, dtype = tuple(description.get_shape()), str(description.get_dtype())
        if given != shape:
            raise ModelError(f"{self._folder}: tensor {found} is {list(given)}, and config.json asks for {list(shape)}")
        if dtype not in _DTYPES:
            raise ModelError(f"{self._folder}: tensor {found} is {dtype}; supported: {', '.join(_DTYPES)}")
        self._unread.discard(found)
        tensor: Tensor = shard.get_tensor(found)
        self.read_bytes += tensor.nbytes
        return tensor, dtype
