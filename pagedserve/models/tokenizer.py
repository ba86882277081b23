# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back. Each token has its own bytes, so that text can be streamed token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.chat_template import ChatTemplate

SPACE = "\u2581"  # how SentencePiece vocabularies write a space


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters


BYTE_CHARACTERS = _byte_characters()


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's file says of its tokens, whatever the file.

    Attributes:
        kind: "bytes" (GPT-2's alphabet) or "spaces" (SentencePiece: U+2581 is a space, <0x0A> a byte).
        added: ids of tokens that stand for their own text: special ones, and those added behind the training.
        special: ids that are not text, such as the end of a turn.
        eos: ids that end an answer.
        bos: the id that begins a text, if the model has one.
        prefix_space: encoding puts a space before a text, which decoding takes away again.
    """

    kind: str
    added: frozenset[int]
    special: frozenset[int]
    eos: frozenset[int]
    bos: int | None = None
    prefix_space: bool = False


class Tokenizer:
    """A model's tokenizer. Made by `load_tokenizer`.

    Attributes:
        vocab_size: tokens it knows; the model's own vocab_size may be padded beyond it.
        special_ids, eos_ids: sets of ids. bos_id: an id or None.
        chat_template: a ChatTemplate, or None.
    """

    def __init__(self, backend: Any, vocabulary: Vocabulary, chat_template: ChatTemplate | None = None) -> None:
        self._backend = backend
        self._vocabulary = vocabulary
        self._pieces: dict[int, bytes] = {}
        self.chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.special_ids = vocabulary.special
        self.eos_ids = vocabulary.eos
        self.bos_id = vocabulary.bos

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of a text. The names of special tokens in it, such as <|im_end|>, become those tokens.

        Args:
            text: any Unicode string.
            add_special: put before and behind it what the model wants there (most often a bos). Off for a rendered
                chat, whose template has written it.

        Raises:
            InvalidInput: the text is not a string, or holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"the text is a {type(text).__name__}; a string is expected")
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special).ids)
        except (UnicodeEncodeError, TypeError):
            raise InvalidInput("the text holds half of a surrogate pair, which is not Unicode") from None

    def encode_chat(self, messages: Sequence[Mapping[str, str]], **variables: Any) -> list[int]:
        """The ids of messages in the model's chat form, ready for the answer; as ChatTemplate.render."""
        return self.encode(self.render_chat(messages, **variables), add_special=False)

    def render_chat(self, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
        """The text of messages in the model's chat form; as ChatTemplate.render."""
        if self.chat_template is None:
            raise ModelError("this model has no chat template; give a plain prompt instead")
        return self.chat_template.render(messages, **variables)

    def piece(self, token_id: int) -> bytes:
        """The bytes a token stands for. They may be a part of a character; an unknown id has none.

        Cost: a dictionary look-up, after the first time.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._make_piece(token_id)
        return piece

    def _make_piece(self, token_id: int) -> bytes:
        token: str | None = self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        if token is None:
            return b""
        if token_id in self._vocabulary.added:
            return token.encode()
        if self._vocabulary.kind == "bytes":
            codes = [BYTE_CHARACTERS[character] for character in token if character in BYTE_CHARACTERS]
            return bytes(codes) if len(codes) == len(token) else token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace(SPACE, " ").encode()

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            token_ids: any ids; those the tokenizer does not know add nothing.
            skip_special: leave special tokens out.
            continues: the ids continue a text, so that a space at their start is theirs to keep.
        """
        skipped = self.special_ids if skip_special else frozenset()
        data = b"".join(self.piece(token_id) for token_id in token_ids if token_id not in skipped)
        if self._vocabulary.prefix_space and not continues:
            data = data.removeprefix(b" ")
        return data.decode(errors="replace")


class Detokenizer:
    """Turns one sequence's tokens into text as they come, never half a character.

    The pieces of text it gives add up to tokenizer.decode(ids, continues=True). Cost: O(1) a token.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; bytes of an unfinished character wait."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.piece(token_id))

    def flush(self) -> str:
        """What waits, at the end of the sequence: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
