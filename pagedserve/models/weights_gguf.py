# SPDX-License-Identifier: Apache-2.0
"""The weights of a GGUF file by pagedserve's names."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pagedserve.errors import ModelError
from pagedserve.models.config import ModelConfig
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.quant import read_vector, read_weight
from pagedserve.ops import Weight

_WHOLE = {"embedding": "token_embd.weight", "output": "output.weight", "output_norm": "output_norm.weight"}
_LAYER = {
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "post_mlp_norm": "post_ffw_norm.weight",
}
_READ_BY_CONFIG = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """GGUF's name for one of pagedserve's."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_LAYER[part]}"


class GgufWeights:
    """A WeightSource over a GGUF file."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file, self._config = file, config
        self._unread = set(file.tensors) - {_READ_BY_CONFIG}
        self.total_bytes = sum(tensor.num_bytes for tensor in file.tensors.values())
        self.read_bytes = 0

    def matrix(self, name: str, out_features: int, in_features: int, format: str | None) -> Weight:
        found = self._found(name, (out_features, in_features))
        return read_weight(self._file, found, format, self._row_order(name))

    def vector(self, name: str, size: int) -> Tensor:
        found = self._found(name, (size,))
        if self._file.tensors[found].type.name not in ("F32", "F16", "BF16"):
            kind = self._file.tensors[found].type.name
            raise ModelError(f"{self._file.path}: tensor {found} is {kind}; norms and biases are F32, F16 or BF16")
        vector = read_vector(self._file, found)
        rows = self._row_order(name.removesuffix("_bias"))
        return vector if rows is None else vector[torch.from_numpy(rows)]

    def finish(self) -> None:
        if self._unread:
            names = ", ".join(sorted(self._unread)[:5])
            raise ModelError(
                f"{self._file.path}: {len(self._unread)} tensors are not part of a {self._config.family} model: {names}"
            )

    def _found(self, name: str, shape: tuple[int, ...]) -> str:
        """GGUF's name of a tensor that is there, in that shape."""
        found = gguf_name(name)
        tensor = self._file.tensors.get(found)
        if tensor is None:
            raise ModelError(f"{self._file.path}: the tensor {found} is missing")
        if tensor.shape != shape:
            raise ModelError(
                f"{self._file.path}: tensor {found} is {list(tensor.shape)}, and the metadata asks for {list(shape)}"
            )
        self._unread.discard(found)
        self.read_bytes += tensor.num_bytes
        return found

    def _row_order(self, name: str) -> np.ndarray | None:
        """Where the rows of a matrix stand in the file, if not in order.

        q and k of arch llama alone: GGUF keeps rotary pairs at (2 i, 2 i + 1) of a head, ops.rope has them at
        (i, i + head_dim / 2).
        """
        heads = {"q": self._config.num_q_heads, "k": self._config.num_kv_heads}.get(name.rpartition(".")[2])
        if heads is None or self._config.family != "llama":
            return None
        width = self._config.head_dim
        return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)
