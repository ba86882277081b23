# SPDX-License-Identifier: Apache-2.0
"""How one request is sampled, when it ends, and what it was promised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from pagedserve.errors import InvalidInput

MAX_LOGPROBS = 20
MAX_COMPLETIONS = 256


@dataclass(frozen=True)
class SamplingParams:
    """Checked once, when made; shared freely between requests.

    Attributes:
        max_tokens: output tokens at most; clipped to what the context has left (finish_reason "length").
        temperature: 0 is greedy, the lowest id among equals.
        top_k: sample among the k likeliest tokens; 0 is off.
        top_p: sample among the likeliest tokens that reach this probability; 1 is off.
        min_p: drop tokens less likely than this share of the likeliest one's probability; 0 is off.
        repetition_penalty: divides (positive) or multiplies (negative) the logits of tokens in prompt and output.
        presence_penalty, frequency_penalty: subtracted from the logits of output tokens, once, and per occurrence.
        seed: the same seed gives the same tokens, alone or in any batch. None: the engine draws one.
        stop: strings that end the output; neither they nor what follows is given out.
        stop_token_ids: tokens that end the output, beside the model's own end-of-text tokens.
        ignore_eos: the model's own end-of-text tokens do not end the output.
        min_tokens: until so many tokens are out, no stop token is sampled and no stop string ends the output.
        n: completions of one prompt, which is computed once; completion i samples with seed + i.
        logprobs: None, or how many of the likeliest tokens (0 to 20) to report beside each sampled token.
        skip_special_tokens: leave the tokenizer's special tokens out of the text.
        priority: higher goes first.
        tenant: requests of different tenants share the engine fairly.
        cache_salt: prompts share computed prefixes only with prompts of the same salt.
        ttft_deadline_s, deadline_s: seconds from arrival to the first and to the last token; a request that
            cannot be served in time is refused with RequestRejected.
        tpot_target_s: seconds between output tokens that the engine aims for.

    Raises:
        InvalidInput: a value of the wrong type or out of range; the message names it.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None
    skip_special_tokens: bool = True
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    ttft_deadline_s: float | None = None
    tpot_target_s: float | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        self._integer("max_tokens", 1, None)
        self._number("temperature", 0.0, 1000.0, "0 is greedy")
        self._integer("top_k", 0, 2**31 - 1, "0 turns it off")
        self._number("top_p", 1e-6, 1.0, "1 turns it off")
        self._number("min_p", 0.0, 1.0, "0 turns it off")
        self._number("repetition_penalty", 0.01, 100.0, "1 turns it off")
        self._number("presence_penalty", -2.0, 2.0, "0 turns it off")
        self._number("frequency_penalty", -2.0, 2.0, "0 turns it off")
        self._integer("seed", 0, 2**64 - 1, optional=True)
        self._strings("stop")
        self._token_ids("stop_token_ids")
        self._boolean("ignore_eos")
        self._integer("min_tokens", 0, self.max_tokens, "it cannot exceed max_tokens")
        self._integer("n", 1, MAX_COMPLETIONS)
        self._integer("logprobs", 0, MAX_LOGPROBS, optional=True)
        self._boolean("skip_special_tokens")
        self._integer("priority", -1_000_000, 1_000_000)
        self._text("tenant")
        self._text("cache_salt")
        for name in ("ttft_deadline_s", "tpot_target_s", "deadline_s"):
            self._number(name, 0.0, None, "seconds; None sets no bound", above=True, optional=True)

    @property
    def penalises(self) -> bool:
        """Whether sampling looks at the tokens before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _refuse(self, name: str, wanted: str) -> InvalidInput:
        return InvalidInput(f"SamplingParams.{name} is {getattr(self, name)!r}; give {wanted}")

    def _integer(self, name: str, low: int, high: int | None, note: str = "", *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        wanted = f"a whole number {_span(low, high)}" + (f" ({note})" if note else "") + (" or None" * optional)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise self._refuse(name, wanted)
        number = int(value)
        if number < low or (high is not None and number > high):
            raise self._refuse(name, wanted)
        self._set(name, number)

    def _number(
        self, name: str, low: float, high: float | None, note: str = "", *, above: bool = False, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        span = _span(low, high).replace("from", "above", 1) if above else _span(low, high)
        wanted = f"a finite number {span}" + (f" ({note})" if note else "") + (" or None" * optional)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise self._refuse(name, wanted)
        number = float(value)
        if number < low or (above and number == low) or (high is not None and number > high):
            raise self._refuse(name, wanted)
        self._set(name, number)

    def _boolean(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise self._refuse(name, "True or False")

    def _text(self, name: str) -> None:
        if not isinstance(getattr(self, name), str):
            raise self._refuse(name, "a string")

    def _strings(self, name: str) -> None:
        given = getattr(self, name)
        strings = (given,) if isinstance(given, str) else given
        wanted = "a string, or a sequence of strings, none empty, each valid UTF-8"
        if not isinstance(strings, (tuple, list)):
            raise self._refuse(name, wanted)
        for string in strings:
            if not isinstance(string, str) or not string or not _is_utf8(string):
                raise self._refuse(name, wanted)
        self._set(name, tuple(dict.fromkeys(strings)))

    def _token_ids(self, name: str) -> None:
        given = getattr(self, name)
        wanted = "a sequence of token ids, each a whole number of at least 0"
        if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, set, frozenset)):
            raise self._refuse(name, wanted)
        for token in given:
            if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
                raise self._refuse(name, wanted)
        self._set(name, tuple(sorted({int(token) for token in given})))


def _span(low: float, high: float | None) -> str:
    return f"from {low}" if high is None else f"from {low} to {high}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
