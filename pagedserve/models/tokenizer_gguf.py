# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from a GGUF file's metadata: byte-level BPE and SentencePiece's BPE, by llama.cpp's rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pagedserve.errors import ModelError
from pagedserve.models.chat_template import ChatTemplate
from pagedserve.models.extras import optional
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.tokenizer import SPACE, Tokenizer, Vocabulary

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# tokenizer.ggml.pre -> the patterns that cut a text into words, one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama-bpe": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "megrez": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# Those that take a whole word from the vocabulary before any merge, and begin a text with bos.
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})

MAX_TOKEN_CHARACTERS = 4096  # rebuilding merges takes the square of it
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
# Some files name only one of several tokens that end an answer.
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>")


def tokenizer_from_gguf(file: GgufFile) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        ModelError: a tokenizer or pre-tokenizer that is not supported, by name; a vocabulary that contradicts itself.

    Cost: 0.15 s for 49,152 tokens.
    """
    model = file.text("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in builders:
        raise ModelError(
            f"{file.path}: tokenizer {model!r} is not supported; "
            "supported: gpt2 (byte-level BPE), llama (SentencePiece)"
        )
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(file.strings("tokenizer.ggml.tokens"))]
    vocab = {token: index for index, token in enumerate(tokens)}
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN_CHARACTERS:
        raise ModelError(f"{file.path}: a token has {longest} characters; at most {MAX_TOKEN_CHARACTERS} are supported")
    if len(vocab) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise ModelError(f"{file.path}: the token {twice!r} stands twice in the vocabulary")
    types = _types(file, len(tokens))
    prefix_space = model == "llama" and file.flag("tokenizer.ggml.add_space_prefix", True)
    try:
        backend = builders[model](file, tokens, vocab, types)
        _add_tokens(backend, tokens, types)
        bos, eos = _surround(file, backend, tokens, model)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{file.path}: the tokenizer's vocabulary and merges do not fit together: {error}") from None
    vocabulary = Vocabulary(
        kind="bytes" if model == "gpt2" else "spaces",
        added=frozenset(_where(types, _UNKNOWN, _CONTROL, _USER_DEFINED)),
        special=frozenset(_where(types, _UNKNOWN, _CONTROL)),
        eos=_eos_ids(file, vocab, types, eos),
        bos=bos,
        prefix_space=prefix_space,
    )
    source = file.text("tokenizer.chat_template", "")
    names = {"bos_token": "" if bos is None else tokens[bos], "eos_token": "" if eos is None else tokens[eos]}
    return Tokenizer(backend, vocabulary, ChatTemplate(source, **names) if source else None)


def _types(file: GgufFile, num_tokens: int) -> np.ndarray:
    """[num_tokens] token types; all normal where the file does not say."""
    if "tokenizer.ggml.token_type" not in file.metadata:
        return np.full(num_tokens, _NORMAL)
    types = file.numbers("tokenizer.ggml.token_type")
    if len(types) != num_tokens:
        raise ModelError(f"{file.path}: tokenizer.ggml.token_type has {len(types)} entries for {num_tokens} tokens")
    return types


def _where(types: np.ndarray, *kinds: int) -> list[int]:
    return np.flatnonzero(np.isin(types, kinds)).tolist()


def _byte_level(file: GgufFile, tokens: list[str], vocab: dict[str, int], types: np.ndarray) -> Any:
    library = optional("tokenizers", "a tokenizer")
    pre = file.text("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"{file.path}: pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not supported; supported: "
            + ", ".join(PRE_TOKENIZERS)
        )
    merges = [tuple(merge.split(" ")) for merge in file.strings("tokenizer.ggml.merges")]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise ModelError(f"{file.path}: the merge {' '.join(wrong[0])!r} is not two tokens with a space between")
    backend = library.Tokenizer(library.models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS))
    split, pattern = library.pre_tokenizers.Split, library.Regex
    cuts = [split(pattern(regex), behavior="isolated") for regex in PRE_TOKENIZERS[pre]]
    spelling = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([*cuts, spelling])
    return backend


def _sentence_piece(file: GgufFile, tokens: list[str], vocab: dict[str, int], types: np.ndarray) -> Any:
    library = optional("tokenizers", "a tokenizer")
    unknown = file.integer("tokenizer.ggml.unknown_token_id", 0)
    if not 0 <= unknown < len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.unknown_token_id is {unknown}, outside the vocabulary")
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    model = library.models.BPE(
        vocab=vocab,
        merges=merges_by_score(tokens, vocab, scores, types),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = library.Tokenizer(model)
    steps = [library.normalizers.Replace(" ", SPACE)]
    if file.flag("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, library.normalizers.Prepend(SPACE))
    backend.normalizer = library.normalizers.Sequence(steps)
    return backend


def merges_by_score(
    tokens: list[str], vocab: dict[str, int], scores: np.ndarray, types: np.ndarray
) -> list[tuple[str, str]]:
    """The merges SentencePiece makes: any two tokens that form a third, the best score first.

    Cost: about 0.5 us a character of the vocabulary.
    """
    merges = []
    for index in _where(types, _NORMAL):
        token, score = tokens[index], float(scores[index])
        if not math.isfinite(score):
            raise ModelError(f"the score of token {index} is {score}; a finite number is expected")
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in vocab and token[cut:] in vocab:
                merges.append((-score, -cut, index, left, token[cut:]))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_tokens(backend: Any, tokens: list[str], types: np.ndarray) -> None:
    """Makes tokens of one piece be found in a text before anything else is cut."""
    added = optional("tokenizers", "a tokenizer").AddedToken
    special = [added(tokens[index], normalized=False, special=True) for index in _where(types, _UNKNOWN, _CONTROL)]
    backend.add_special_tokens(special)
    backend.add_tokens([added(tokens[index], normalized=False) for index in _where(types, _USER_DEFINED)])


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int | None:
    """An id of the metadata; None where it is missing or, as in some files, outside the vocabulary."""
    index = file.integer(key, -1)
    return index if 0 <= index < num_tokens else None


def _surround(file: GgufFile, backend: Any, tokens: list[str], model: str) -> tuple[int | None, int | None]:
    """Sets what encode puts around a text; gives bos and eos."""
    processors = optional("tokenizers", "a tokenizer").processors
    bos = _token_id(file, "tokenizer.ggml.bos_token_id", len(tokens))
    eos = _token_id(file, "tokenizer.ggml.eos_token_id", len(tokens))
    begins = model == "llama" or file.text("tokenizer.ggml.pre", "default") in _WHOLE_WORDS
    before = bos if file.flag("tokenizer.ggml.add_bos_token", begins) else None
    behind = eos if file.flag("tokenizer.ggml.add_eos_token", False) else None
    if before is not None or behind is not None:
        around = {index: tokens[index] for index in (before, behind) if index is not None}
        single = ["bos"] * (before is not None) + ["$A"] + ["eos"] * (behind is not None)
        special = [
            {"id": name, "ids": [index], "tokens": [around[index]]}
            for name, index in (("bos", before), ("eos", behind))
            if index is not None
        ]
        backend.post_processor = processors.TemplateProcessing(single=single, pair=None, special_tokens=special)
    return bos, eos


def _eos_ids(file: GgufFile, vocab: dict[str, int], types: np.ndarray, eos: int | None) -> frozenset[int]:
    given = [_token_id(file, f"tokenizer.ggml.{name}_token_id", len(types)) for name in ("eot", "eom")]
    named = [vocab[token] for token in _TURN_ENDS if token in vocab and types[vocab[token]] == _CONTROL]
    return frozenset(index for index in (eos, *given, *named) if index is not None)
