# SPDX-License-Identifier: Apache-2.0
"""The forward against transformers in float32: tiny random models of every family; the demo model's known answers."""

import json

import pytest
import torch

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.config_gguf import from_gguf
from pagedserve.models.config_huggingface import from_huggingface, read_json
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.llama import Llama
from pagedserve.models.load import load_model
from pagedserve.models.safetensors_file import SafetensorsFolder
from pagedserve.models.weights import read_weights
from pagedserve.models.weights_gguf import GgufWeights
from pagedserve.ops import KVLayer, StepLimits, rope_table, step_builder
from tests.models.model_tools import Runner, write_gguf

transformers = pytest.importorskip("transformers")

BACKENDS = ["reference", "cpu"]
NUM_TOKENS = 45
SIZES = {
    "vocab_size": 96,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT = {"original_max_position_embeddings": 16, "rope_theta": 1e4}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "llama3": ("Llama", {"rope_parameters": {**LLAMA3, **SHORT}}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **SHORT}}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 24, "num_attention_heads": 4}),
    "qwen2, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "gemma3": ("Gemma3", {"sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 20}),
    "gemma3, capped": ("Gemma3", {"sliding_window": 6, "layer_types": MIXED, "final_logit_softcapping": 3.0}),
}


def make_theirs(name: str, folder, **more):
    """A random model of transformers, saved to folder as shards; its norms and biases are random as well."""
    family, changes = MODELS[name]
    config_class = transformers.Gemma3TextConfig if family == "Gemma3" else getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    config = config_class(**{**SIZES, **changes, **more}, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" in parameter_name:
                parameter.mul_(0.3)
    model.eval().save_pretrained(folder, max_shard_size="40KB")
    return model


def read_model(folder) -> Llama:
    config = from_huggingface(read_json(folder / "config.json"))
    weights = read_weights(config, SafetensorsFolder(folder, config), lambda name: None, lambda *_: None)
    return Llama(config, weights)


def random_ids(seed: int, count: int = NUM_TOKENS) -> list[int]:
    return torch.randint(3, SIZES["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """Our model and transformers' logits of two texts."""
    folder = tmp_path_factory.mktemp("model")
    theirs = make_theirs(request.param, folder)
    with torch.no_grad():
        logits = [theirs(torch.tensor([random_ids(seed)])).logits[0] for seed in (0, 1)]
    return read_model(folder), logits


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_equal_transformers(pair, backend):
    model, logits = pair
    assert relative_error(Runner(model, backend).run((0, random_ids(0))), logits[0]) <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_sequences_in_chunks_then_token_by_token(pair, backend):
    model, logits = pair
    runner = Runner(model, backend, num_seqs=2)
    first, second = random_ids(0), random_ids(1)
    parts = [runner.run((0, first[:17]), (0, second[:5])), runner.run((17, first[17:18]), (5, second[5:40]))]
    parts += [runner.run((18 + i, first[18 + i : 19 + i]), (40 + i, second[40 + i : 41 + i])) for i in range(5)]
    ours = [torch.cat([part[:cut] for part, cut in zip(parts, [17, 1, *[1] * 5], strict=True)])]
    ours.append(torch.cat([part[cut:] for part, cut in zip(parts, [17, 1, *[1] * 5], strict=True)]))
    assert relative_error(ours[0], logits[0][:23]) <= 2e-5
    assert relative_error(ours[1], logits[1]) <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_smaller_keys_and_values_stay_near(kv_dtype, backend, tmp_path):
    make_theirs("smollm2", tmp_path)
    model, ids = read_model(tmp_path), random_ids(0)
    exact = Runner(model, backend).run((0, ids))
    near = Runner(model, backend, kv_dtype=kv_dtype).run((0, ids))
    steps = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.int8: 1 / 127, torch.float8_e4m3fn: 2**-3}
    # Random layers amplify a rounding of keys about eight times. Over bf16 pages q, weights and o are rounded too.
    times = 24 if kv_dtype == torch.bfloat16 else 12
    assert 0 < relative_error(near, exact) <= times * steps[kv_dtype]


def test_every_feature_of_a_family_matters(tmp_path):
    """The comparison above can fail: each field that sets a family apart changes the logits."""
    folder = tmp_path / "gemma3"
    make_theirs("gemma3", folder)
    values = read_json(folder / "config.json")
    expected = Runner(read_model(folder), "reference").run((0, random_ids(0)))
    for change in (
        {"sliding_window": 20},
        {"query_pre_attn_scalar": 16},
        {"layer_types": ["full_attention"] * 3},
        {"hidden_activation": "silu"},
        {"rms_norm_eps": 1e-2},
        {"attn_logit_softcapping": 1.0},
        {"final_logit_softcapping": 1.0},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e2}}},
    ):
        config = from_huggingface({**values, **change})
        source = SafetensorsFolder(folder, config)
        model = Llama(config, read_weights(config, source, lambda name: None, lambda *_: None))
        assert relative_error(Runner(model, "reference").run((0, random_ids(0))), expected) > 1e-3, change


def test_formats_that_differ_are_multiplied_apart(tmp_path):
    """q and k in bf16, v in f32: two matrices behind one buffer."""
    theirs = make_theirs("qwen2", tmp_path)
    config = from_huggingface(read_json(tmp_path / "config.json"))

    def choose(name: str) -> str | None:
        return "bf16" if name.endswith((".q", ".k", ".gate")) else None

    model = Llama(config, read_weights(config, SafetensorsFolder(tmp_path, config), choose, lambda *_: None))
    assert [weight.format for weight in model.weights.layers[0].qkv.weights] == ["bf16", "f32"]
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "gate_proj.weight")):
                parameter.copy_(parameter.bfloat16())
        expected = theirs(torch.tensor([random_ids(0)])).logits[0]
    assert relative_error(Runner(model, "reference").run((0, random_ids(0))), expected) <= 2e-5


def test_pages_of_another_model_are_refused(tmp_path):
    make_theirs("mistral", tmp_path)
    model = read_model(tmp_path)
    pages = torch.zeros(4, 4, 2, 24)
    with pytest.raises(InvalidInput, match=r"this model has 3 of \(2, 16\)"):
        model.build(step_builder("reference", StepLimits(8, 1, 4, 8)), [KVLayer(pages, pages)] * 3)


# Folders that are not what they say


@pytest.fixture
def folder(tmp_path):
    make_theirs("smollm2", tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    """Gathers the shards into one file, after change(tensors)."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
        shard.unlink()
    change(tensors)
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop(NORM), "model.norm.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "1 tensors are not part of the model.*extra"),
        (lambda tensors: tensors.update({NORM: torch.zeros(3)}), r"is \[3\], and config.json asks for \[96\]"),
        (lambda tensors: tensors.update({NORM: torch.zeros(96, dtype=torch.int8)}), "is I8; supported: F32, F16, BF16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        read_model(folder)


def test_f16_and_bf16_files_and_what_may_be_ignored(folder):
    expected = Runner(read_model(folder), "reference").run((0, random_ids(0)))

    def change(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
        tensors["lm_head.weight"] = torch.zeros(96, 96)  # tied models have none, or a copy
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors[NORM] = tensors[NORM].half()

    rewrite(folder, change)
    model = read_model(folder)
    assert model.weights.embedding.format == "bf16"
    assert relative_error(Runner(model, "reference").run((0, random_ids(0))), expected) < 0.1


@pytest.mark.parametrize(
    "index, message",
    [
        ({"weight_map": {NORM: "../model.safetensors"}}, "not a plain name"),
        ({"weight_map": {NORM: 5}}, "not a plain name"),
        ({"weight_map": {NORM: "absent.safetensors"}}, "absent.safetensors: cannot be read"),
        ({"weight_map": {"ghost": "model-00001-of-00002.safetensors"}}, "does not have it"),
        ({"weight_map": {}}, "must name a file"),
        ({"weight_map": [1]}, "must name a file"),
    ],
)
def test_an_index_that_lies_is_refused(index, message, folder):
    shard = min(folder.glob("*.safetensors"))
    shard.rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        read_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 9, 100, 5000])
def test_a_truncated_safetensors_file_is_refused(keep, folder):
    rewrite(folder, lambda tensors: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_model(folder)


@pytest.mark.parametrize("length", [(1 << 63) - 1, (1 << 64) - 1, 100_000_001])
def test_a_safetensors_header_that_lies_is_refused(length, folder):
    rewrite(folder, lambda tensors: None)
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_model(folder)


def test_a_folder_without_weights_says_what_to_do(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(ModelError, match="neither model"):
        read_model(folder)


# GGUF files of every family: the gguf package's own names, llama's permuted rows, Gemma's norms with their 1 added.


def write_as_gguf(folder, path) -> None:
    """A folder's model as a GGUF file, as llama.cpp's converter writes it."""
    import gguf
    from safetensors.torch import load_file

    values, tensors = read_json(folder / "config.json"), {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(values["model_type"], values["model_type"])
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, values["num_hidden_layers"])
    written = {}
    for name, tensor in tensors.items():
        if arch == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor + 1
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = values["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        written[names.get_name(name, (".weight", ".bias"))] = (tensor.numpy(), None)
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": values["num_hidden_layers"],
        f"{arch}.context_length": values["max_position_embeddings"],
        f"{arch}.embedding_length": values["hidden_size"],
        f"{arch}.feed_forward_length": values["intermediate_size"],
        f"{arch}.attention.head_count": values["num_attention_heads"],
        f"{arch}.attention.head_count_kv": values["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
    }
    if values.get("head_dim"):
        metadata.update({f"{arch}.attention.{part}_length": values["head_dim"] for part in ("key", "value")})
    rope = values["rope_parameters"]
    metadata[f"{arch}.rope.freq_base"] = rope.get("full_attention", rope)["rope_theta"]
    if arch == "gemma3":
        metadata[f"{arch}.attention.sliding_window"] = values["sliding_window"]
    if rope.get("rope_type") in ("linear", "yarn"):
        metadata[f"{arch}.rope.scaling.type"] = rope["rope_type"]
        metadata[f"{arch}.rope.scaling.factor"] = rope["factor"]
    if rope.get("rope_type") == "yarn":
        metadata[f"{arch}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope.get("rope_type") == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, values["head_dim"], 2) / values["head_dim"])
        scaled = rope_table(values["head_dim"], 2, theta=rope["rope_theta"], scaling=rope)[1]
        angles = torch.atan2(*scaled.view(2, -1).flip(0))  # position 1: the frequency itself
        written["rope_freqs.weight"] = ((plain / angles).float().numpy(), None)
    write_gguf(path, metadata, written)


GGUF_MODELS = {
    **{name: {} for name in ("smollm2", "llama3", "llama, biases", "llama, yarn", "llama, linear", "qwen2", "qwen3")},
    "mistral": {"sliding_window": None},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "layer_types": None},
}


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_a_gguf_file_of_every_family(name, tmp_path):
    make_theirs(name, tmp_path, **GGUF_MODELS[name])
    write_as_gguf(tmp_path, tmp_path / "model.gguf")
    file = GgufFile(tmp_path / "model.gguf")
    config = from_gguf(file)
    model = Llama(config, read_weights(config, GgufWeights(file, config), lambda name: None, lambda *_: None))
    expected = Runner(read_model(tmp_path), "reference").run((0, random_ids(0)))
    assert relative_error(Runner(model, "reference").run((0, random_ids(0))), expected) <= 1e-5


# The demo model

ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.<|im_end|>",
    "Write a short poem about the sea.": "The waves of the ocean, a tapestry woven with life,",
    "Explain in two sentences what a hash table is.": "A hash table is a data structure used in computer science to "
    "store and retrieve data in a hash-based manner. It uses a hash code",
}


@pytest.fixture(scope="module")
def demo(demo_path):
    return load_model(demo_path, dtype="float32")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_models_known_answers(demo, backend):
    prompts = [demo.tokenizer.encode_chat([{"role": "user", "content": prompt}]) for prompt in ANSWERS]
    wanted = [demo.tokenizer.encode(answer) for answer in ANSWERS.values()]
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, wanted, strict=True)]
    runner = Runner(demo.model, backend, num_seqs=3, max_len=80, max_rows=240)
    logits = runner.run(*((0, text) for text in texts))
    at = 0
    for prompt, answer, text in zip(prompts, wanted, texts, strict=True):
        chosen = logits[at + len(prompt) - 1 : at + len(text) - 1].argmax(dim=1).tolist()
        assert chosen == answer
        at += len(text)
