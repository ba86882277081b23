# SPDX-License-Identifier: Apache-2.0
"""Real text, as token ids: the language reference that Python itself carries, cut into pieces that share no prefix."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Sequence

from bench.workload import Request


def real_text() -> str:
    """About 460,000 characters of English prose and examples; the same for one version of Python."""
    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def tokens_of(model: str) -> list[int]:
    """The text in a GGUF model's own tokens, about 120,000.

    Raises:
        pagedserve.errors.ModelError: the file's tokenizer cannot be read.
    """
    from pagedserve.models.gguf_file import GgufFile
    from pagedserve.models.tokenizer_gguf import tokenizer_from_gguf

    return tokenizer_from_gguf(GgufFile(model)).encode(real_text(), add_special=False)


class Prompts:
    """Deals out prompts of any length: each a piece of the text that begins where no other does."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._next = 0
        self._begun: set[int] = set()

    def deal(self, length: int) -> tuple[int, ...]:
        """The next piece; behind the last, pieces begin one token later than those dealt before.

        Raises:
            ValueError: the text has no further place for a prompt so long.
        """
        last = len(self._tokens) - length
        begin = self._next if self._next <= last else 0
        while begin in self._begun:
            begin += 1
        if begin > last:
            raise ValueError(f"a text of {len(self._tokens)} tokens has no more prompts of {length} to give")
        self._begun.add(begin)
        self._next = begin + length
        return tuple(self._tokens[begin : begin + length])


def closed(prompts: Prompts, users: int, rounds: int, prompt_len: int, max_tokens: int) -> list[Request]:
    """Users that send `rounds` requests each, the next when the last is over."""
    return [Request(prompts.deal(prompt_len), max_tokens, user=user) for _ in range(rounds) for user in range(users)]


def open_loop(prompts: Prompts, arrivals_s: Sequence[float], prompt_len: int, max_tokens: int) -> list[Request]:
    """Requests that come by the clock."""
    return [Request(prompts.deal(prompt_len), max_tokens, arrival_s=arrival_s) for arrival_s in arrivals_s]
