# SPDX-License-Identifier: Apache-2.0
"""Who watches an engine: told of what happens as it happens, in the engine's own threads, so it must return at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pagedserve.engine.requests import CompletionState, Request
from pagedserve.errors import PagedServeError


class Observer(Protocol):
    """arrived, admitted and stepped come from the loop's thread, sampled and ended from that of the outputs."""

    def arrived(self, request: Request) -> None:
        """A request reached the scheduler's door."""

    def admitted(self, completion: CompletionState, ttft_s: float | None) -> None:
        """The scheduler took it; ttft_s is its predicted wait for the first token, where that was promised."""

    def stepped(self, num_tokens: int, seconds: float) -> None:
        """A step was computed."""

    def sampled(self, completions: Iterable[CompletionState], t: float) -> None:
        """Each of these got a token at t."""

    def ended(self, request: Request, error: PagedServeError | None) -> None:
        """A request is over: all its completions ended, or it failed with this error."""


class Unobserved:
    """Nobody watches."""

    def arrived(self, request: Request) -> None: ...

    def admitted(self, completion: CompletionState, ttft_s: float | None) -> None: ...

    def stepped(self, num_tokens: int, seconds: float) -> None: ...

    def sampled(self, completions: Iterable[CompletionState], t: float) -> None: ...

    def ended(self, request: Request, error: PagedServeError | None) -> None: ...
