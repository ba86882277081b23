# SPDX-License-Identifier: Apache-2.0
"""ModelConfig: what transformers and llama.cpp mean by their fields, and what is refused."""

import numpy as np
import pytest
import torch

from pagedserve.errors import ModelError
from pagedserve.models.config import Rope
from pagedserve.models.config_gguf import from_gguf
from pagedserve.models.config_huggingface import from_huggingface, read_json
from pagedserve.models.gguf_file import GgufFile
from pagedserve.ops import rope_table

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def test_llama():
    config = from_huggingface(LLAMA)
    assert (config.family, config.head_dim, config.q_size, config.kv_size) == ("llama", 16, 64, 32)
    assert config.attention_scale == 0.25
    assert config.windows == (0,) * 7
    assert config.rope == Rope(10_000.0)
    assert (config.tied, config.qkv_bias, config.o_bias, config.qk_norm, config.sandwich_norms) == (False,) * 5
    biased = from_huggingface({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True,) * 3


def test_llama3_scaling_in_both_spellings():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    old = from_huggingface({**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}).rope
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, **scaling}
    new = from_huggingface({**LLAMA, "rope_parameters": parameters}).rope
    assert torch.equal(old.table(16, 100), new.table(16, 100))
    assert torch.equal(old.table(16, 100), rope_table(16, 100, theta=5e5, scaling={"rope_type": "llama3", **scaling}))
    assert not torch.equal(old.table(16, 100), Rope(5e5).table(16, 100))


def test_linear_and_yarn_scaling():
    linear = from_huggingface({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4}}).rope
    assert torch.equal(linear.table(16, 100)[::4], Rope().table(16, 25))
    # Without a length of its own, a scaling counts from the model's.
    short = from_huggingface({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}).rope
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert torch.equal(short.table(16, 100), rope_table(16, 100, scaling=given))


def test_mistral_windows():
    mistral = {**LLAMA, "model_type": "mistral"}
    assert from_huggingface(mistral).windows == (4096,) * 7
    assert from_huggingface({**mistral, "sliding_window": 32}).windows == (32,) * 7
    assert from_huggingface({**mistral, "sliding_window": None}).windows == (0,) * 7


def test_qwen_biases_norms_and_windows():
    qwen2 = {**LLAMA, "model_type": "qwen2", "sliding_window": 32, "max_window_layers": 3}
    config = from_huggingface(qwen2)
    assert (config.qkv_bias, config.o_bias) == (True, False)
    assert config.windows == (0,) * 7
    assert from_huggingface({**qwen2, "use_sliding_window": True}).windows == (0, 0, 0, 32, 32, 32, 32)
    qwen3 = from_huggingface({**LLAMA, "model_type": "qwen3"})
    assert (qwen3.qk_norm, qwen3.qkv_bias) == (True, False)
    assert qwen3.head_dim == 128


def test_gemma3_in_both_spellings():
    gemma = {**LLAMA, "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 48, "query_pre_attn_scalar": 64}
    old = from_huggingface({**gemma, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6})
    parameters = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    kinds = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    new = from_huggingface({**gemma, "rope_parameters": parameters, "layer_types": kinds})
    assert old == new
    assert old.windows == (48, 48, 48, 48, 48, 0, 48)
    assert (old.layer_rope(0).theta, old.layer_rope(5).theta) == (1e4, 1e6)
    assert (old.attention_scale, old.embed_scale, old.activation) == (0.125, 8.0, "gelu_tanh")
    assert (old.tied, old.qk_norm, old.sandwich_norms) == (True,) * 3
    assert from_huggingface({**gemma, "final_logit_softcapping": 30.0}).logit_soft_cap == 30.0


def test_transformers_configs_are_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    for make in ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "Gemma3TextConfig"):
        theirs = getattr(transformers, make)()
        theirs.save_pretrained(tmp_path)
        ours = from_huggingface(read_json(tmp_path / "config.json"))
        assert ours.num_layers == theirs.num_hidden_layers
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
        assert ours.tied == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mixtral"}, r"model_type 'mixtral' is not supported.*llama \(.*gemma3"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "does not predict the next token"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not supported; supported: float32"),
        ({"quantization_config": "awq"}, "'awq' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic' is not supported; supported: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "factor of the rope scaling is None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}, "rope_theta": 1.0}, "rotary embedding is not supported"),
        ({"rope_scaling": "linear"}, "an object is expected"),
        ({"rope_theta": -1.0}, "theta is -1.0"),
        ({"rope_theta": float("nan")}, "finite"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported; supported: silu"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers; 1 to 1024"),
        ({"num_hidden_layers": 0}, "0 layers"),
        ({"num_attention_heads": 0}, "num_q_heads is 0"),
        ({"num_attention_heads": 3}, "3 query heads are not a multiple of 2"),
        ({"num_attention_heads": True}, "num_attention_heads is True; a whole number"),
        ({"head_dim": 12}, "head_dim is 12; supported: multiples of 8 up to 256"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 1 << 40}, "vocab_size is"),
        ({"max_position_embeddings": 0}, "context length is 0"),
        ({"rms_norm_eps": -1.0}, "epsilon"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types must be a list of 7"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 7}, "layer type 'chunked_attention'"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "both directions"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"model_type": "mistral", "sliding_window": -5}, "sliding_window is -5"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(ModelError, match=message):
        from_huggingface({**LLAMA, **change})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xff", b"[" * 100_000])
def test_a_broken_config_json_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


# GGUF


def test_the_demo_model(demo_file):
    config = from_gguf(demo_file)
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_q_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.context_length, config.tied) == (49152, 8192, True)
    assert config.rope == Rope(100_000.0)


def test_gguf_rotary_scaling(make_gguf):
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16}
    rope = from_gguf(GgufFile(make_gguf({f"llama.rope.{key}": value for key, value in yarn.items()}))).rope
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert torch.equal(rope.table(8, 50), rope_table(8, 50, scaling=given))
    linear = from_gguf(GgufFile(make_gguf({"llama.rope.scaling.factor": 2.0}))).rope
    assert torch.equal(linear.table(8, 50)[::2], Rope().table(8, 25))
    factors = np.array([1, 1, 2, 8], np.float32)
    file = GgufFile(make_gguf(tensors={"rope_freqs.weight": (factors, None)}))
    assert from_gguf(file).rope.divisors == (1.0, 1.0, 2.0, 8.0)
    assert torch.equal(from_gguf(file).rope.table(8, 50)[::8, 3], Rope().table(8, 7)[:, 3])
    with pytest.raises(ModelError, match="positive and finite"):
        from_gguf(GgufFile(make_gguf(tensors={"rope_freqs.weight": (factors - 1, None)})))
    with pytest.raises(ModelError, match="3 divisors for a rotary_dim of 8"):
        from_gguf(GgufFile(make_gguf(tensors={"rope_freqs.weight": (factors[:3], None)})))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"general.architecture": "mamba"}, r"architecture 'mamba' is not supported.*qwen2"),
        ({"general.architecture": None}, "no general.architecture"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.block_count": (1 << 32) - 1}, "4294967295 layers"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is an array"),
        ({"llama.attention.head_count": 0}, "num_q_heads is 0"),
        ({"llama.attention.value_length": 16}, "value_length"),
        ({"llama.rope.dimension_count": 4}, "part of the head"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
        ({"llama.rope.freq_base": float("inf")}, "finite"),
        ({"llama.context_length": None}, "no llama.context_length"),
    ],
)
def test_gguf_metadata_that_is_not_supported_is_refused_by_name(change, message, make_gguf):
    with pytest.raises(ModelError, match=message):
        from_gguf(GgufFile(make_gguf(change)))


def test_a_file_without_an_embedding_is_refused(make_gguf):
    with pytest.raises(ModelError, match=r"token_embd\.weight"):
        from_gguf(GgufFile(make_gguf(tensors={"token_embd.weight": None})))
