# SPDX-License-Identifier: Apache-2.0
"""What a caller gets: whole outputs, and the deltas of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagedserve.errors import PagedServeError


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One sampled token's log probability under the model's own logits, before temperature and penalties.

    Attributes:
        top: the likeliest tokens, as (token id, log probability), likeliest first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class RequestMetrics:
    """When what happened to one completion, in seconds on the engine's clock; None: it has not.

    Attributes:
        arrival_s, scheduled_s, first_token_s, finish_s: the times themselves.
        prefix_hit_tokens: prompt tokens that were not computed, because their pages were there.
        preemptions: how often it gave up its pages to others.
        num_output_tokens: tokens given out.
    """

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    num_output_tokens: int = 0

    @property
    def queue_s(self) -> float | None:
        """From arrival to the first step that computes something of it."""
        return None if self.scheduled_s is None else self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Between tokens after the first: (finish - first token) / (tokens - 1); None below two tokens."""
        if self.finish_s is None or self.first_token_s is None or self.num_output_tokens < 2:
            return None
        return (self.finish_s - self.first_token_s) / (self.num_output_tokens - 1)

    @property
    def total_s(self) -> float | None:
        """From arrival to the end."""
        return None if self.finish_s is None else self.finish_s - self.arrival_s


@dataclass(slots=True)
class Delta:
    """What is new in one completion of a stream.

    Text may lag behind tokens: half a character, and what may yet become a stop string, is held back.

    Attributes:
        index: which of the n completions.
        text, token_ids, logprobs: new since the last delta of this index; logprobs is None unless asked for.
        finish_reason: on the last delta only; as in Completion.
        stop_reason: as in Completion.
        metrics: on the last delta only.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    metrics: RequestMetrics | None = None

    def extend(self, later: Delta) -> None:
        """Take in the next delta of the same index."""
        self.text += later.text
        self.token_ids += later.token_ids
        if later.logprobs is not None:
            self.logprobs = later.logprobs if self.logprobs is None else self.logprobs + later.logprobs
        self.finish_reason, self.stop_reason, self.metrics = later.finish_reason, later.stop_reason, later.metrics


@dataclass(slots=True)
class Completion:
    """One of a request's n outputs.

    Attributes:
        text: without the stop string, and without the text of the token that ended it.
        token_ids: every sampled token, the one that ended it included.
        finish_reason: "stop", "length", "abort" or "error".
        stop_reason: the stop string, or the stop token of SamplingParams.stop_token_ids; None for the model's own.
        logprobs: one per token, where asked for.
        cumulative_logprob: their sum, where asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    cumulative_logprob: float | None = None
    metrics: RequestMetrics | None = None

    def extend(self, delta: Delta) -> None:
        """Take in the next delta of this completion."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            if self.logprobs is None or self.cumulative_logprob is None:
                self.logprobs, self.cumulative_logprob = [], 0.0
            self.logprobs += delta.logprobs
            self.cumulative_logprob += sum(entry.logprob for entry in delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
            self.metrics = delta.metrics


@dataclass(slots=True)
class RequestOutput:
    """A whole request.

    Attributes:
        id: unique in its engine.
        prompt: the text, where text was given.
        outputs: n completions, by index.
        metrics: of the first completion, which is the one that computes the prompt.
        error: why it failed or was refused; its completions then hold what came before, finish_reason "error".
    """

    id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    metrics: RequestMetrics | None = None
    error: PagedServeError | None = None
