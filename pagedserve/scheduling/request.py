# SPDX-License-Identifier: Apache-2.0
"""A request inside the scheduler: its tokens, and where its computation stands."""

from __future__ import annotations

import enum
import math
from operator import index
from typing import TYPE_CHECKING

from pagedserve.scheduling.events import Arrive

if TYPE_CHECKING:
    from pagedserve.scheduling.prefix import Node


class State(enum.Enum):
    """BLOCKED waits for another request's prompt; WAITING for a row and pages; RUNNING has both."""

    BLOCKED = "blocked"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class Sequence:
    """One request's tokens and how many of them are computed. Read it; only the scheduler writes.

    There are no phases: a sequence has tokens, and of those a prefix is computed. Whose every token but the
    last is computed decodes, once it has sampled a token since it was given its row.

    Attributes:
        id, tenant, priority, cache_salt, tpot_target_s: as in Arrive.
        tokens: the prompt, then what was sampled.
        num_prompt: tokens of the prompt.
        max_len: tokens at which it ends: prompt and max_tokens.
        arrival_s, order: when it came, and as the how-manyth.
        key: its place in the queue; smallest first (policy.waiting_key).
        ttft_due_s, due_s: the times of its deadlines; inf for none.
        row: its row in the runner's page table while it runs, else -1.
        pages: its pages, in the order of its tokens.
        prefix_hit_tokens: tokens it found computed when it last started.
        preemptions: how often it gave its pages up.
    """

    def __init__(self, event: Arrive, prompt: list[int], order: int, key: float) -> None:
        self.id = event.id
        self.tokens = prompt
        self.num_prompt = len(prompt)
        self.max_len = len(prompt) + event.max_tokens
        self.min_len = len(prompt) + event.min_tokens
        self.stop_token_ids = event.stop_token_ids
        self.tenant = event.tenant
        self.priority = event.priority
        self.cache_salt = event.cache_salt
        self.tpot_target_s = event.tpot_target_s
        self.arrival_s = event.t
        self.order = order
        self.key = key
        self.ttft_due_s = math.inf if event.ttft_deadline_s is None else event.t + event.ttft_deadline_s
        self.due_s = math.inf if event.deadline_s is None else event.t + event.deadline_s
        self.state = State.WAITING
        self.followers: list[Sequence] = []  # start once this prompt is computed
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.peak = 0  # the most tokens ever computed
        self.needs_pages = 0  # what the pool lacked when it last could not start

        self.row = -1
        self.slot = -1  # place in the decode batch
        self.due_tick = 0  # decode step at which it needs a page or ends; 0: none
        self.computed = 0  # stands still while it decodes; see num_computed
        self.pages: list[int] = []
        self.host_pages: list[int] = []  # its pages, while it is swapped out
        self.node: Node | None = None  # the prefix cache's node of its last whole page there
        self.num_shared = 0  # whole pages on the way to that node
        self.tail: Node | None = None  # the node of its last, partly filled page

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are in its pages."""
        return len(self.tokens) - 1 if self.slot >= 0 else self.computed

    @property
    def num_output(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def output(self) -> list[int]:
        """The tokens sampled so far; a copy."""
        return self.tokens[self.num_prompt :]

    def __repr__(self) -> str:
        return f"<{self.id} {self.state.value} {self.num_computed}/{len(self.tokens)} of {self.max_len}>"


def read_prompt(event: Arrive) -> list[int] | None:
    """The prompt as ints; None where it holds anything else, or a negative number."""
    try:
        tokens = list(map(index, event.prompt))
    except TypeError:
        return None
    return None if tokens and (min(tokens) < 0 or bool in set(map(type, tokens))) else tokens


def invalid_arrival(event: Arrive, prompt: list[int] | None) -> str | None:
    """What is wrong with an arrival in itself: a sentence, or None."""
    if not isinstance(event.id, str) or not event.id:
        return f"id must be a string of at least one character; got {event.id!r}"
    if not is_finite(event.t):
        return f"t must be a finite time; got {event.t!r}"
    if prompt is None:
        return "prompt must be a sequence of token ids, ints of at least 0"
    if not prompt:
        return "prompt is empty; give at least one token"
    if type(event.max_tokens) is not int or event.max_tokens < 1:
        return f"max_tokens must be an int of at least 1; got {event.max_tokens!r}"
    if type(event.min_tokens) is not int or not 0 <= event.min_tokens <= event.max_tokens:
        return f"min_tokens must be an int from 0 to max_tokens ({event.max_tokens}); got {event.min_tokens!r}"
    if type(event.priority) is not int or abs(event.priority) > 1_000_000:
        return f"priority must be an int from -1000000 to 1000000; got {event.priority!r}"
    if not isinstance(event.stop_token_ids, frozenset):
        return f"stop_token_ids must be a frozenset; got {type(event.stop_token_ids).__name__}"
    for name in ("tenant", "cache_salt"):
        if not isinstance(getattr(event, name), str):
            return f"{name} must be a string; got {getattr(event, name)!r}"
    if event.after is not None and not isinstance(event.after, str):
        return f"after must be a request's id or None; got {event.after!r}"
    for name in ("ttft_deadline_s", "tpot_target_s", "deadline_s"):
        value = getattr(event, name)
        if value is not None and not (is_finite(value) and value > 0):
            return f"{name} must be a finite number of seconds above 0, or None; got {value!r}"
    return None


def is_finite(value: object) -> bool:
    """A number that is neither infinite nor NaN."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
