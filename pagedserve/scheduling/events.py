# SPDX-License-Identifier: Apache-2.0
"""What goes into a scheduler (events) and what comes out of it (decisions and step plans).

Times are seconds on whatever clock the caller keeps; the scheduler only compares them. The sequence of
events is the scheduler's only input: the same events give the same decisions, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagedserve.scheduling.cost import NO_STEP, StepShape

# Events


@dataclass(frozen=True, slots=True)
class Arrive:
    """A request at the door. Stop conditions on text are the caller's: it sends Abort or a shorter max_tokens."""

    t: float
    id: str
    prompt: Sequence[int]
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    tenant: str = ""
    priority: int = 0  # higher goes first
    ttft_deadline_s: float | None = None  # from arrival to the first token
    tpot_target_s: float | None = None
    deadline_s: float | None = None  # from arrival to the last token
    after: str | None = None  # start once this request's prompt is computed, and share its pages
    cache_salt: str = ""  # prefixes are shared only between equal salts


@dataclass(frozen=True, slots=True)
class Abort:
    """The caller no longer wants this request."""

    t: float
    id: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step was computed: one token for each sequence that samples, in the plan's order."""

    t: float
    step: int
    tokens: Sequence[int]
    failed: Sequence[str] = ()  # ids whose token could not be computed (all-NaN logits); the others' stand
    ms: float | None = None  # that computing it took; None: since it was planned


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step computed nothing. Its sequences are computed again, or failed where they already failed alone.

    Its swaps, copies and page writes were made before and stand: they are not planned again.
    """

    t: float
    step: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Resize:
    """The pool has this many pages from now on; while a step is in flight, from its end on."""

    t: float
    num_pages: int


@dataclass(frozen=True, slots=True)
class Drain:
    """No request is taken from now on; those taken are finished."""

    t: float


Event = Arrive | Abort | StepDone | StepFailed | Resize | Drain


# Decisions


@dataclass(frozen=True, slots=True)
class Admit:
    """The request is queued; it will be computed."""

    id: str
    ttft_s: float | None = None  # predicted, where it was promised


@dataclass(frozen=True, slots=True)
class Reject:
    """The request is refused at arrival. reason as in errors.RequestRejected."""

    id: str
    reason: str
    message: str
    retry_after_s: float | None = None
    hold_s: float | None = None  # for so long after retry_after_s a place is kept for its tenant and id; None: none is


@dataclass(frozen=True, slots=True)
class Expire:
    """A queued request's deadline passed, or can no longer be met; nothing was computed for it."""

    id: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Preempt:
    """A running sequence gave up its pages; it is queued again and loses no token."""

    id: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The request is over. reason: "stop" (a stop token, kept as the last output token), "length", "deadline" (its
    total deadline passed while it ran), "abort", "error"."""

    id: str
    reason: str
    message: str = ""


Decision = Admit | Reject | Expire | Preempt | Finish

# The plan of a step


@dataclass(slots=True)
class Chunk:
    """One sequence's share of a step: its tokens [start, start + num_tokens) are computed.

    row is the sequence's place in the runner's page table and per-request arrays, from its start to its
    end or preemption. samples says that the chunk reaches the last known token, so that a token is sampled.
    """

    id: str
    row: int
    start: int
    num_tokens: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """One step. The runner applies, in this order: swap_out, copies, swap_in, page_writes; then computes.

    A decode is a sequence whose every token but the last is computed: one token in, one sampled. tokens of
    StepDone come in the order: decode_rows, then the chunks that sample.
    """

    step: int
    decode_rows: Sequence[int] = ()  # rows with one new token each; the same object as long as it is unchanged
    decode_ids: Sequence[str] = ()  # beside decode_rows
    chunks: list[Chunk] = field(default_factory=list)  # prompts, and prompts computed again after a preemption
    page_writes: list[tuple[int, int, int]] = field(default_factory=list)  # (row, index, page) of page_table
    copies: list[tuple[int, int]] = field(default_factory=list)  # (source page, destination page), copy on write
    swap_out: list[tuple[int, int]] = field(default_factory=list)  # (device page, host page)
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # (host page, device page)
    graph_bucket: int = 0  # the batch size whose captured graph holds this step; 0: none does
    shape: StepShape = NO_STEP
    predicted_ms: float = 0.0  # that computing a step of this shape will take
