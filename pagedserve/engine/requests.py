# SPDX-License-Identifier: Apache-2.0
"""A request on its way through the engine: its completions, tokens in and deltas out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pagedserve.engine.outputs import Delta, RequestMetrics, TokenLogprob
from pagedserve.engine.sampling import SamplingParams
from pagedserve.engine.stopping import StopMatcher
from pagedserve.errors import PagedServeError


class Channel(Protocol):
    """Where a request's deltas go. Called from one engine thread at a time; must return at once."""

    def put(self, delta: Delta) -> None:
        """One delta; the last of each index carries its finish_reason."""

    def fail(self, error: PagedServeError) -> None:
        """The request is over; nothing follows."""


class Detokenizer(Protocol):
    """Tokens to text, one at a time, never half a character."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


@dataclass(slots=True)
class StepTokens:
    """What a step sampled.

    Attributes:
        tokens: in the plan's order: decodes, then the chunks that sample.
        failed: ids of those whose logits were all NaN; their tokens mean nothing.
        logprobs: [num_rows] float32, beside tokens.
        top_tokens, top_logprobs: [num_rows, num_top], likeliest first. Empty, all three, where nobody asked.
    """

    tokens: list[int]
    failed: tuple[str, ...] = ()
    logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    top_tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    top_logprobs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def logprob(self, i: int, num_top: int) -> TokenLogprob:
        """Of token i, with its num_top likeliest alternatives."""
        top: tuple[tuple[int, float], ...] = ()
        if num_top:
            top = tuple(
                zip(self.top_tokens[i, :num_top].tolist(), self.top_logprobs[i, :num_top].tolist(), strict=True)
            )
        return TokenLogprob(self.tokens[i], float(self.logprobs[i]), top)


@dataclass(eq=False, slots=True)
class Request:
    """One prompt and its n completions.

    Attributes:
        max_tokens: what is left of SamplingParams.max_tokens in the context.
        eos_token_ids: the model's own end-of-text tokens; empty where they are ignored.
        seed: of completion 0; completion i samples with seed + i.
        detokenizer: makes one for each completion.
        open: completions that have not ended.
    """

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    eos_token_ids: frozenset[int]
    seed: int
    channel: Channel
    detokenizer: Callable[[], Detokenizer]
    arrival_s: float
    open: int = field(init=False)
    completions: list[CompletionState] = field(init=False)

    def __post_init__(self) -> None:
        self.open = self.params.n
        self.completions = [CompletionState(self, index) for index in range(self.params.n)]

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token that ends a completion."""
        return self.eos_token_ids | frozenset(self.params.stop_token_ids)


class CompletionState:
    """One completion of a request: detokenises, finds stop strings, sends deltas.

    Belongs to the thread that handles outputs, but for metrics' scheduled_s, prefix_hit_tokens and
    preemptions, which the loop writes.
    """

    __slots__ = ("_detokenizer", "_matcher", "_seen", "ended", "id", "index", "metrics", "request")

    def __init__(self, request: Request, index: int) -> None:
        self.id = request.id if index == 0 else f"{request.id}#{index}"
        self.request = request
        self.index = index
        self.metrics = RequestMetrics(request.arrival_s)
        self.ended = False
        self._detokenizer = request.detokenizer()
        self._matcher = StopMatcher(request.params.stop) if request.params.stop else None
        self._seen = 0

    @property
    def seed(self) -> int:
        """What the sampler's noise is keyed by; 64 bits."""
        return (self.request.seed + self.index) % 2**64

    def push(self, token: int, t: float, logprob: TokenLogprob | None, *, last: bool = False) -> None:
        """One sampled token that is not a stop token. last: none follows, finish_reason "length"."""
        self._count(t)
        text = self._detokenizer.push(token)
        stop = None
        if self._matcher is not None:
            text, stop = self._matcher.feed(text, armed=self._seen >= self.request.params.min_tokens)
        delta = Delta(self.index, text, [token], None if logprob is None else [logprob])
        if stop is not None:
            self._end(delta, t, "stop", stop)
        elif last:
            delta.text += self._rest()
            self._end(delta, t, "length", None)
        self.request.channel.put(delta)

    def push_last(self, token: int, t: float, logprob: TokenLogprob | None) -> None:
        """The sampled token that ended the completion: kept as a token, but no text."""
        self._count(t)
        delta = Delta(self.index, self._rest(), [token], None if logprob is None else [logprob])
        self._end(delta, t, "stop", None if token in self.request.eos_token_ids else token)
        self.request.channel.put(delta)

    def finish(self, reason: str, t: float) -> None:
        """No further token comes."""
        delta = Delta(self.index, self._rest())
        self._end(delta, t, reason, None)
        self.request.channel.put(delta)

    def _count(self, t: float) -> None:
        self._seen += 1
        self.metrics.num_output_tokens = self._seen
        if self.metrics.first_token_s is None:
            self.metrics.first_token_s = t

    def _rest(self) -> str:
        """The text held back until no more can come."""
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text
        safe, _ = self._matcher.feed(text, armed=False)
        return safe + self._matcher.flush()

    def _end(self, delta: Delta, t: float, reason: str, stop_reason: str | int | None) -> None:
        self.ended = True
        self.metrics.finish_s = t
        delta.finish_reason, delta.stop_reason, delta.metrics = reason, stop_reason, self.metrics
        self.request.open -= 1
