# SPDX-License-Identifier: Apache-2.0
"""What the model tests share: a tiny GGUF model, and a runner of steps."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pagedserve.cache import KVPool
from pagedserve.models.llama import Llama
from pagedserve.models.tokenizer import BYTE_CHARACTERS
from pagedserve.ops import StepLimits, step_builder

PAGE_SIZE = 4
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ã ©", "1 2"]
TOKENS = ["<|end|>", "<|turn|>", *BYTE_CHARACTERS, *(merge.replace(" ", "") for merge in MERGES)]

# A llama of one layer, 32 wide, with a byte-level tokenizer.
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * (len(TOKENS) - 2)],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
}
SHAPES = {
    "token_embd.weight": (len(TOKENS), 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Writes a GGUF file with the gguf package; None leaves a key or tensor out."""
    import gguf

    writer = gguf.GGUFWriter(path, "unused")
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_tensors() -> dict[str, tuple[np.ndarray, None]]:
    rng = np.random.default_rng(0)
    return {name: (rng.standard_normal(shape).astype(np.float32) / 8, None) for name, shape in SHAPES.items()}


class Runner:
    """Runs a model's step on pages that are NaN until written, in an order of pages that is not theirs."""

    def __init__(
        self,
        model: Llama,
        backend: str,
        *,
        num_seqs: int = 1,
        max_len: int = 64,
        max_rows: int = 64,
        kv_dtype: torch.dtype = torch.float32,
    ) -> None:
        config, max_pages = model.config, -(-max_len // PAGE_SIZE)
        num_pages = num_seqs * max_pages
        sizes = (config.num_layers, config.num_kv_heads, config.head_dim)
        layers = KVPool(*sizes, num_pages=num_pages, page_size=PAGE_SIZE, dtype=kv_dtype).layers()
        for tensor in (tensor for layer in layers for tensor in layer if tensor is not None):
            if tensor.dtype.is_floating_point:
                tensor.fill_(torch.nan)
        limits = StepLimits(max_tokens=num_seqs * max_len, max_seqs=num_seqs, max_pages=max_pages, max_rows=max_rows)
        self.step = model.build(step_builder(backend, limits), layers)
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(1))
        self.step.inputs.page_table.copy_(order.view(num_seqs, max_pages))

    def run(self, *chunks: tuple[int, list[int]]) -> torch.Tensor:
        """One chunk a sequence, (start, token ids). Returns logits [tokens of all chunks, vocab_size]."""
        inputs, at = self.step.inputs, 0
        for row, (start, token_ids) in enumerate(chunks):
            positions = torch.arange(start, start + len(token_ids))
            tokens = slice(at, at + len(token_ids))
            inputs.token_ids[tokens] = torch.tensor(token_ids, dtype=torch.int32)
            inputs.positions[tokens] = positions.int()
            pages = inputs.page_table[row, positions // PAGE_SIZE].long()
            inputs.slot_mapping[tokens] = pages * PAGE_SIZE + positions % PAGE_SIZE
            inputs.q_starts[row + 1] = at = tokens.stop
            inputs.kv_lens[row] = start + len(token_ids)
        inputs.logit_rows[:at] = torch.arange(at, dtype=torch.int32)
        return self.step.run(at, len(chunks), at).clone()
