# SPDX-License-Identifier: Apache-2.0
"""A request inside the scheduler: its tokens, and where its computation stands."""

from __future__ import annotations

import enum
import math
from array import array
from typing import TYPE_CHECKING

from pagedserve.errors import require
from pagedserve.scheduling.config import is_above, is_count
from pagedserve.scheduling.events import Arrive
from pagedserve.scheduling.prefix import Node

if TYPE_CHECKING:
    from pagedserve.scheduling.queue import Tenant


class State(enum.Enum):
    """Where a request stands."""

    BLOCKED = "waits for another request's prompt"
    WAITING = "waits for a row and pages"
    RUNNING = "has both"
    DONE = "is over"


class Sequence:
    """One request's tokens and how many of them are computed. Read it; only the scheduler writes.

    There are no phases. Whose every token but the last is computed decodes, once it has sampled one in its row.
    """

    __slots__ = (  # thousands are looked at in turn: what is together in memory is there sooner
        *("arrival", "id", "tokens", "num_prompt", "max_len", "min_len", "stop_token_ids", "order", "key"),
        *("first_due_s", "end_due_s", "due_s", "predicted_s", "is_late", "tenant", "waits", "waiting_tokens"),
        *("expected_tokens", "num_starts", "has_place", "had_to_wait", "was_held", "state", "followers", "preemptions"),
        *("prefix_hit_tokens", "peak", "needs_pages", "row", "slot", "due_tick", "computed", "pages", "host_pages"),
        *("node", "num_shared", "tail"),
    )

    def __init__(self, event: Arrive, prompt: array[int], order: int, key: float) -> None:
        self.arrival = event
        self.id = event.id
        self.tokens = prompt  # and what was sampled after it
        self.num_prompt = len(prompt)
        self.max_len = len(prompt) + event.max_tokens  # tokens at which it ends
        self.min_len = len(prompt) + event.min_tokens  # tokens from which a stop token ends it
        self.stop_token_ids = event.stop_token_ids
        self.order, self.key = order, key  # it came as the how-manyth; its place in the queue (policy.waiting_key)
        ttft_s, total_s = (math.inf if wait is None else wait for wait in (event.ttft_deadline_s, event.deadline_s))
        self.first_due_s, self.end_due_s = event.t + ttft_s, event.t + total_s
        self.due_s = min(self.first_due_s, self.end_due_s)  # when it is given up; once it started, end_due_s
        self.predicted_s = math.inf  # when its first token was predicted at its arrival; inf where it was not
        self.is_late = False  # its first token came after first_due_s
        self.tenant: Tenant | None = None  # once it waited
        self.waits = False  # in the queue
        self.waiting_tokens = 0  # to be computed before its next is sampled, when it last came to the queue
        self.expected_tokens = 0.0  # of output, when it started
        self.num_starts = self.preemptions = 0  # how often it got a row, and gave its pages up
        self.has_place = False  # kept for it since it was sent away
        self.had_to_wait = False  # for its first start, after a prediction
        self.was_held = False  # back once, for another to compute what both begin with
        self.state = State.WAITING
        self.followers: list[Sequence] = []  # start once this prompt is computed
        self.prefix_hit_tokens = 0  # tokens it found computed when it last started
        self.peak = 0  # the most tokens that were computed when it was preempted
        self.needs_pages = 0  # available pages without which it could not start when last tried
        self.row = self.slot = -1  # in the runner's page table, while it runs; in the decode batch, while it decodes
        self.due_tick = 0  # the decode step at which it ends or outgrows its pages; 0: none
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


def is_finite(value: object) -> bool:
    """A number that is neither infinite nor NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def read_prompt(event: Arrive) -> array[int]:
    """The prompt in 64-bit ints; InvalidInput that names the field where something is wrong with the arrival itself."""
    try:
        prompt = array("Q", event.prompt if isinstance(event.prompt, array) else iter(event.prompt))
    except (TypeError, OverflowError):
        prompt = array("Q")
    most = event.max_tokens if is_count(event.max_tokens, 1) else 0
    rules = [
        ("id", isinstance(event.id, str) and event.id != "", "a string of at least one character"),
        ("t", is_finite(event.t), "a finite time"),
        ("prompt", len(prompt) > 0, "at least one token id, each an int from 0 to 2^64 - 1"),
        ("max_tokens", most > 0, "an int of at least 1"),
        ("min_tokens", is_count(event.min_tokens, 0, most), "an int from 0 to max_tokens"),
        ("priority", is_count(event.priority, -1_000_000, 1_000_000), "an int from -1000000 to 1000000"),
        ("stop_token_ids", isinstance(event.stop_token_ids, frozenset), "a frozenset of token ids"),
        *((name, isinstance(getattr(event, name), str), "a string") for name in ("tenant", "cache_salt")),
        ("after", event.after is None or isinstance(event.after, str), "a request's id, or None"),
    ]
    for name in ("ttft_deadline_s", "tpot_target_s", "deadline_s"):
        value = getattr(event, name)
        rules.append((name, value is None or is_above(value), "a number of seconds above 0, or None"))
    require(event, rules)
    return prompt
