# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from a Hugging Face folder: tokenizer.json, with the special tokens and templates beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagedserve.errors import ModelError
from pagedserve.models.chat_template import ChatTemplate
from pagedserve.models.config_huggingface import read_json
from pagedserve.models.extras import optional
from pagedserve.models.tokenizer import SPACE, Tokenizer, Vocabulary


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
        ModelError: no tokenizer.json, a file that cannot be read, or a decoder that is not supported.
    """
    library = optional("tokenizers", "a tokenizer")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: has no tokenizer.json; save it there with transformers' save_pretrained")
    try:
        backend = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{path}: cannot be read as a tokenizer: {error}") from None
    # A text is encoded as it is, whatever the file says of the batches it was trained with.
    backend.no_truncation()
    backend.no_padding()
    config = _optional_json(folder / "tokenizer_config.json")
    names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token")}
    added = backend.get_added_tokens_decoder()
    kind, prefix_space = _decoding(backend, path)
    vocabulary = Vocabulary(
        kind=kind,
        added=frozenset(added),
        special=frozenset(index for index, token in added.items() if token.special),
        eos=_eos_ids(folder, backend, names["eos_token"]),
        bos=backend.token_to_id(names["bos_token"]) if names["bos_token"] else None,
        prefix_space=prefix_space,
    )
    source = _chat_template(folder, config)
    return Tokenizer(backend, vocabulary, ChatTemplate(source, **names) if source else None)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str:
    """A special token's text: a string, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _decoding(backend: Any, path: Path) -> tuple[str, bool]:
    """How tokens spell their bytes, and whether a text's first space is the tokenizer's own."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if "type" in step}
    if "ByteLevel" in steps:
        return "bytes", False
    if "Metaspace" in steps and steps["Metaspace"].get("replacement") == SPACE:
        return "spaces", steps["Metaspace"].get("prepend_scheme", "always") != "never"
    if steps.get("Replace", {}).get("pattern") == {"String": SPACE}:
        return "spaces", steps.get("Strip", {}).get("start", 0) > 0
    raise ModelError(
        f"{path}: the decoder {', '.join(steps) or 'none'} is not supported; supported: ByteLevel, Metaspace, and "
        "Replace of U+2581 (SentencePiece)"
    )


def _eos_ids(folder: Path, backend: Any, eos_token: str) -> frozenset[int]:
    """Every id that some file of the folder says ends an answer."""
    found = {backend.token_to_id(eos_token)} if eos_token else set()
    for name in ("generation_config.json", "config.json"):
        given = _optional_json(folder / name).get("eos_token_id")
        found.update(given if isinstance(given, list) else [given])
    if wrong := [
        index for index in found if index is not None and (isinstance(index, bool) or not isinstance(index, int))
    ]:
        raise ModelError(f"{folder}: eos_token_id {wrong[0]!r} is not a whole number")
    return frozenset(index for index in found if index is not None)


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template: a file of its own, or tokenizer_config.json's, the one named default of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from None
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else ""
