# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: by the file's own rules, back again, and streamed without half a character."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.chat_template import ChatTemplate
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.tokenizer import BYTE_CHARACTERS, Detokenizer
from pagedserve.models.tokenizer_gguf import PRE_TOKENIZERS, merges_by_score, tokenizer_from_gguf
from pagedserve.models.tokenizer_huggingface import tokenizer_from_folder
from tests.models.model_tools import METADATA, tiny_tensors, write_gguf

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "In 1969, 3.14159 and 1,234,567 people; room 007.",
    "½ Ⅻ ² ١٢٣ 一二三",  # numbers that are not digits
    "it's we'll I'M they'D 'tis",
    "a\nb\r\n\n\n  c\t\td   ",
    "def f(x):\n    return x ** 2  # \u00b2\n",
    "naïve café, Straße, Ελληνικά, русский, עברית, العربية, हिन्दी",
    "日本語と中文と한국어。",
    "🤗👩‍👩‍👧‍👦🏳️‍🌈 family",
    "e\u0301 is not é",
    "\u00a0\u2003\u200b\ufeff spaces",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end",
    "zero\x00byte \x7f \x1b[0m",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20#e",
]


@pytest.fixture(scope="module")
def demo(demo_file):
    return tokenizer_from_gguf(demo_file)


@pytest.fixture(scope="module")
def recipe(demo_file):
    """The demo model's tokenizer in the words of its own tokenizer.json, not of llama.cpp's regular expressions."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokens = list(demo_file.strings("tokenizer.ggml.tokens"))
    merges = [tuple(merge.split(" ")) for merge in demo_file.strings("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens[:17]])
    return backend


@pytest.mark.parametrize("text", TEXTS)
def test_the_demo_model_encodes_by_its_recipe(text, demo, recipe):
    assert demo.encode(text) == recipe.encode(text).ids
    assert demo.decode(demo.encode(text), skip_special=False) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t\r0123456789aAsS'tTé\u2003\u00b2.,!<|im_end>"))
def test_any_text_round_trips_by_the_recipe(text, demo, recipe):
    token_ids = demo.encode(text)
    assert token_ids == recipe.encode(text).ids
    # The vocabulary lacks a few control bytes: such a byte is dropped, as by every reader of this file.
    known = bytes(byte for character, byte in BYTE_CHARACTERS.items() if recipe.token_to_id(character) is not None)
    if not text.encode().translate(None, known):
        assert demo.decode(token_ids, skip_special=False) == text


def test_the_demo_models_special_tokens(demo):
    assert (demo.bos_id, demo.eos_ids, demo.vocab_size) == (1, {2}, 49152)
    assert demo.special_ids == set(range(17))
    assert demo.encode("<|im_start|>x<|im_end|>") == [1, *demo.encode("x"), 2]
    assert demo.decode([1, *demo.encode("x"), 2]) == "x"
    assert demo.encode("2026")[0] == demo.encode("2")[0]
    assert len(demo.encode("2026")) == 4


def test_an_unknown_id_adds_nothing(demo):
    assert [demo.piece(index) for index in (-1, 49152, 1 << 40)] == [b"", b"", b""]
    assert demo.decode([-5, *demo.encode("a"), 10**9]) == "a"


@pytest.mark.parametrize("text", [b"bytes", None, 5, "half \ud800 pair"])
def test_what_is_not_text_is_refused(text, demo):
    with pytest.raises(InvalidInput, match="text"):
        demo.encode(text)


# Streaming


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streamed_pieces_add_up(demo, data):
    text = data.draw(st.text(alphabet="aé日🤗👩\u200d\u0301 ", max_size=20))
    token_ids = demo.encode(text) + data.draw(st.lists(st.integers(0, 49151), max_size=20))
    token_ids = data.draw(st.permutations(token_ids))
    stream = Detokenizer(demo)
    pieces = [stream.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + stream.flush() == demo.decode(token_ids, continues=True)


def test_a_character_is_never_cut(demo):
    token_ids = demo.encode("x🤗y日")
    assert len(token_ids) > 4  # the emoji takes several tokens
    stream, shown = Detokenizer(demo), ""
    for token_id in token_ids:
        shown += stream.push(token_id)
        assert "x🤗y日".startswith(shown)
    assert shown == "x🤗y日"
    assert stream.flush() == ""


def test_an_unfinished_character_shows_at_the_end(demo):
    token_ids = demo.encode("🤗")[:-1]
    stream = Detokenizer(demo)
    assert "".join(stream.push(token_id) for token_id in token_ids) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_show_when_asked(demo):
    stream = Detokenizer(demo, skip_special=False)
    assert [stream.push(1), Detokenizer(demo).push(1)] == ["<|im_start|>", ""]


# Other GGUF tokenizers


def test_bos_and_eos_go_around_a_text(make_gguf):
    def ids(**flags):
        return tokenizer_from_gguf(GgufFile(make_gguf({f"tokenizer.ggml.{k}": v for k, v in flags.items()}))).encode(
            "a"
        )

    (a,) = ids()
    assert ids(add_bos_token=True) == [1, a]
    assert ids(add_eos_token=True) == [a, 0]
    assert ids(add_bos_token=True, add_eos_token=True) == [1, a, 0]
    assert ids(pre="llama-bpe") == [1, a]
    tokenizer = tokenizer_from_gguf(GgufFile(make_gguf({"tokenizer.ggml.add_bos_token": True})))
    assert tokenizer.encode("a", add_special=False) == [a]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_keeps_the_text(pre, make_gguf):
    tokenizer = tokenizer_from_gguf(GgufFile(make_gguf({"tokenizer.ggml.pre": pre})))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text
    digits = len(tokenizer.encode("12", add_special=False))
    assert digits == (2 if pre in ("smollm", "starcoder", "qwen2", "deepseek-r1-qwen", "megrez", "tekken") else 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.model": "t5"}, "'t5' is not supported; supported: gpt2"),
        ({"tokenizer.ggml.model": None}, "no tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "jais-9"}, "'jais-9'.*is not supported; supported: default"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": None}, "'a' stands twice"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries"),
        ({"tokenizer.ggml.tokens": ["a" * 5000], "tokenizer.ggml.token_type": None}, "5000 characters"),
        ({"tokenizer.ggml.merges": ["h e", "oops"]}, "'oops' is not two tokens"),
        ({"tokenizer.ggml.merges": ["zq qz"]}, "do not fit together"),
        ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
        ({"tokenizer.chat_template": "{% if %}"}, "not valid Jinja"),
    ],
)
def test_a_tokenizer_that_is_not_supported_is_refused_by_name(change, message, make_gguf):
    with pytest.raises(ModelError, match=message):
        tokenizer_from_gguf(GgufFile(make_gguf(change)))


PIECES = [
    "\u2581",
    "e",
    "t",
    "a",
    "h",
    "o",
    "n",
    "\u2581t",
    "he",
    "\u2581the",
    "an",
    "\u2581a",
    "on",
    "to",
    "\u2581to",
    "ne",
    "one",
]
SENTENCE_PIECE = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n\n", *PIECES]
SENTENCE_PIECE_METADATA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": None,
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.tokens": SENTENCE_PIECE,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4, *[1] * len(PIECES)],
    "tokenizer.ggml.scores": [0.0] * 260 + [-float(index) for index in range(len(PIECES))],
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def sentence_piece_ids(text: str) -> list[int]:
    """SentencePiece's BPE as it is defined: the best-scored neighbours merge until none can; the rest is bytes."""
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    score = {piece: -index for index, piece in enumerate(PIECES)}
    while True:
        pairs = [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids = []
    for symbol in symbols:
        ids += [SENTENCE_PIECE.index(symbol)] if symbol in score else [3 + byte for byte in symbol.encode()]
    return ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ethaon Z🤗"))
def test_sentence_piece_merges_by_score(text, sentence_piece):
    # An empty text has no space before it.
    expected = sentence_piece_ids(text) if text else []
    assert sentence_piece.encode(text) == [1, *expected]
    assert sentence_piece.decode(sentence_piece.encode(text)) == text


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "spm.gguf"
    return tokenizer_from_gguf(GgufFile(write_gguf(path, {**METADATA, **SENTENCE_PIECE_METADATA}, tiny_tensors())))


def test_a_text_that_continues_keeps_its_space(sentence_piece):
    token_ids = sentence_piece.encode("the one", add_special=False)
    assert sentence_piece.decode(token_ids) == "the one"
    assert sentence_piece.decode(token_ids, continues=True) == " the one"
    stream = Detokenizer(sentence_piece)
    assert "".join(map(stream.push, token_ids)) + stream.flush() == " the one"


def test_user_defined_tokens_are_found_whole(sentence_piece):
    assert sentence_piece.encode("a\n\na")[2] == SENTENCE_PIECE.index("\n\n")


def test_a_score_that_is_no_number_is_refused():
    tokens = ["a", "b", "ab"]
    vocab = {token: index for index, token in enumerate(tokens)}
    with pytest.raises(ModelError, match="score of token 2 is nan"):
        merges_by_score(tokens, vocab, np.array([0.0, 0.0, np.nan]), np.ones(3))


# Hugging Face folders


@pytest.fixture
def folder(tmp_path, recipe):
    """The demo model's tokenizer as a Hugging Face folder has it."""
    from tokenizers import decoders

    recipe.decoder = decoders.ByteLevel()
    recipe.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def _write(path, value) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_folder_and_a_gguf_agree(folder, demo):
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.special_ids == demo.special_ids
    for text in TEXTS:
        assert tokenizer.encode(text) == demo.encode(text)
        assert tokenizer.decode(demo.encode(text)) == demo.decode(demo.encode(text))


def test_a_folders_special_tokens_and_template(folder):
    assert tokenizer_from_folder(folder).eos_ids == frozenset()
    _write(folder / "config.json", {"eos_token_id": 7})
    _write(folder / "generation_config.json", {"eos_token_id": [2, 0]})
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": "old"}
    _write(folder / "tokenizer_config.json", config)
    tokenizer = tokenizer_from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {0, 2, 7})
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "old"
    named = [{"name": "tool", "template": "tool"}, {"name": "default", "template": "named {{ bos_token }}"}]
    _write(folder / "tokenizer_config.json", {**config, "chat_template": named})
    assert tokenizer_from_folder(folder).render_chat([{"role": "user", "content": "x"}]) == "named <|im_start|>"
    _write(folder / "chat_template.jinja", "of its own")
    assert tokenizer_from_folder(folder).render_chat([{"role": "user", "content": "x"}]) == "of its own"


def test_a_sentence_piece_folder(tmp_path, sentence_piece):
    from tokenizers import Tokenizer, decoders

    backend = Tokenizer.from_str(sentence_piece._backend.to_str())
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_folder(tmp_path)
    token_ids = tokenizer.encode("the one 🤗")
    assert token_ids == sentence_piece.encode("the one 🤗")
    assert tokenizer.decode(token_ids) == backend.decode(token_ids) == "the one 🤗"


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer.json": None}, "no tokenizer.json"),
        ({"tokenizer.json": "{"}, "cannot be read as a tokenizer"),
        ({"tokenizer_config.json": "["}, "tokenizer_config.json"),
        ({"generation_config.json": {"eos_token_id": "two"}}, "'two' is not a whole number"),
    ],
)
def test_a_broken_folder_is_refused(files, message, folder):
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            _write(folder / name, content)
    with pytest.raises(ModelError, match=message):
        tokenizer_from_folder(folder)


def test_an_unknown_decoder_is_refused(folder, recipe):
    from tokenizers import decoders

    recipe.decoder = decoders.WordPiece()
    recipe.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match="WordPiece is not supported; supported: ByteLevel"):
        tokenizer_from_folder(folder)


# Chat templates


def test_the_demo_models_chat(demo):
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    opening = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    messages = [{"role": "user", "content": "Hi"}]
    assert demo.render_chat(messages) == opening + "<|im_start|>assistant\n"
    assert demo.render_chat(messages, add_generation_prompt=False) == opening
    assert demo.encode_chat(messages) == demo.encode(opening + "<|im_start|>assistant\n")
    own = demo.render_chat([{"role": "system", "content": "S"}, *messages])
    assert own == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "messages", [[], "Hi", {"role": "user", "content": "Hi"}, [{"role": "user"}], [{"role": 1, "content": "x"}], ["Hi"]]
)
def test_messages_that_are_none_are_refused(messages, demo):
    with pytest.raises(InvalidInput, match="messages"):
        demo.render_chat(messages)


def test_a_template_may_refuse_and_may_not_escape():
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(InvalidInput, match="only pirates"):
        ChatTemplate("{{ raise_exception('only pirates') }}").render(messages)
    for escape in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ nothing.there }}"):
        with pytest.raises(InvalidInput, match="refuses these messages"):
            ChatTemplate(escape).render(messages)
    assert ChatTemplate("{{ messages | tojson }}{{ thinking }}").render(messages, thinking=1).endswith('"x"}]1')


def test_a_model_without_a_template_says_so(sentence_piece):
    with pytest.raises(ModelError, match="no chat template"):
        sentence_piece.encode_chat([{"role": "user", "content": "x"}])
