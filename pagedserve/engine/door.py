# SPDX-License-Identifier: Apache-2.0
"""The door: what callers give is checked here once, and becomes a Request."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Protocol

from pagedserve.engine.requests import Channel, Detokenizer, Request
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import InvalidInput

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, str]]


class Tokenizer(Protocol):
    """What the engine needs of models.Tokenizer."""

    eos_ids: frozenset[int]

    def encode(self, text: str, *, add_special: bool = True) -> list[int]: ...

    def render_chat(self, messages: Conversation) -> str: ...


class Door:
    """Makes Requests. Safe for use from any thread.

    Args:
        detokenizer: makes a Detokenizer, given skip_special_tokens.
        vocab_size: of the model's logits; ids beyond it are refused.
        max_model_len: tokens of prompt and output together.
        seed: requests that give no seed draw theirs from it and from their number.
        clock: of arrival times.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        detokenizer: Callable[[bool], Detokenizer],
        *,
        vocab_size: int,
        max_model_len: int,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._seed = seed
        self._clock = clock
        self._numbers = itertools.count()

    def encode(self, prompt: Prompt, name: str = "the prompt") -> list[int]:
        """Token ids of a prompt, checked.

        Raises:
            InvalidInput: empty, over the context, or not of this vocabulary.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidInput(f"{name} is empty; give at least one character")
            tokens = self._tokenizer.encode(prompt)
        else:
            tokens = self._token_ids(prompt, name)
        return self._check_length(tokens, name)

    def encode_chat(self, messages: Conversation, name: str = "the conversation") -> tuple[str, list[int]]:
        """The prompt of a conversation, in the model's own form, and its token ids."""
        text = self._tokenizer.render_chat(messages)
        return text, self._check_length(self._tokenizer.encode(text, add_special=False), name)

    def request(
        self, tokens: list[int], params: SamplingParams | None, channel: Channel, *, id: str | None = None
    ) -> Request:
        """A Request for an encoded prompt, arriving now."""
        params = self.params(params)
        number = next(self._numbers)
        if id is not None and (not isinstance(id, str) or not id or "#" in id):
            raise InvalidInput(f"the request's id is {id!r}; give a string that is not empty and has no '#', or None")
        seed = params.seed
        if seed is None:
            seed = int.from_bytes(hashlib.blake2b(f"{self._seed}/{number}".encode(), digest_size=8).digest(), "little")
        return Request(
            id=f"request-{number}" if id is None else id,
            prompt_token_ids=tokens,
            params=params,
            max_tokens=min(params.max_tokens, self._max_model_len - len(tokens)),
            eos_token_ids=frozenset() if params.ignore_eos else self._tokenizer.eos_ids,
            seed=seed,
            channel=channel,
            detokenizer=lambda: self._detokenizer(params.skip_special_tokens),
            arrival_s=self._clock(),
        )

    def params(self, params: SamplingParams | None) -> SamplingParams:
        """Checked against this model; None: the defaults."""
        if params is None:
            return SamplingParams()
        if not isinstance(params, SamplingParams):
            raise InvalidInput(f"params is a {type(params).__name__}; give SamplingParams(...) or None")
        beyond = [token for token in params.stop_token_ids if token >= self._vocab_size]
        if beyond:
            raise InvalidInput(
                f"SamplingParams.stop_token_ids holds {beyond[0]}; this model's ids are 0 to {self._vocab_size - 1}"
            )
        return params

    def _token_ids(self, prompt: Sequence[int], name: str) -> list[int]:
        try:
            given = list(prompt)
        except TypeError:
            raise InvalidInput(f"{name} is a {type(prompt).__name__}; give a string or a list of token ids") from None
        for token in given:
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise InvalidInput(f"{name} holds {token!r}; give a string or a list of token ids")
            if not 0 <= token < self._vocab_size:
                raise InvalidInput(f"{name} holds token id {token}; this model's are 0 to {self._vocab_size - 1}")
        return [int(token) for token in given]

    def _check_length(self, tokens: list[int], name: str) -> list[int]:
        if not tokens:
            raise InvalidInput(f"{name} is empty; give at least one token")
        if len(tokens) >= self._max_model_len:
            raise InvalidInput(
                f"{name} is {len(tokens)} tokens long; this engine holds {self._max_model_len} tokens of prompt and "
                f"output together, at least one of them output: shorten it, or raise max_model_len as far as the "
                f"model allows"
            )
        return tokens
