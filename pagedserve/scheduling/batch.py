# SPDX-License-Identifier: Apache-2.0
"""The sequences that wait, and those that decode."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from pagedserve.scheduling.request import Sequence, State


class WaitingQueue:
    """Sequences that wait for a row and pages, by (key, order). Whoever is not WAITING any more has left."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []

    def push(self, seq: Sequence) -> None:
        """Queue it; it is WAITING from now on."""
        seq.state = State.WAITING
        heapq.heappush(self._heap, (seq.key, seq.order, seq))

    def head(self) -> Sequence | None:
        """Who is next; None where nobody waits."""
        heap = self._heap
        while heap and heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def pop(self) -> None:
        """The head starts."""
        heapq.heappop(self._heap)


class DecodeBatch:
    """The sequences that decode, each with one token in and one out per step.

    rows and ids stay the same objects until who decodes changes. What a sequence meets on its way, the end of its
    page or its last token, is known beforehand, so it stands in a calendar under the step at which it happens: a step
    costs one append per sequence, one set operation for stop tokens, and work for the few that are due.
    """

    def __init__(self) -> None:
        self.seqs: list[Sequence] = []
        self.rows: list[int] = []
        self.ids: list[str] = []
        self.appends: list[Callable[[int], None]] = []  # of each sequence's tokens
        self.stop_counts: dict[int, int] = {}  # stop token -> how many have it
        self._tick = 0
        self._calendar: dict[int, list[Sequence]] = {}
        self._lent = False

    def __len__(self) -> int:
        return len(self.seqs)

    def lend(self) -> None:
        """A plan names the lists: they do not change from now on, others take their place."""
        self._lent = True

    def join(self, seq: Sequence) -> None:
        """seq decodes from the next plan on."""
        self._own()
        seq.slot = len(self.seqs)
        self.seqs.append(seq)
        self.rows.append(seq.row)
        self.ids.append(seq.id)
        self.appends.append(seq.tokens.append)
        for token in seq.stop_token_ids:
            self.stop_counts[token] = self.stop_counts.get(token, 0) + 1

    def leave(self, seq: Sequence) -> None:
        """seq does not decode any more; the last takes its place."""
        self._own()
        seq.computed = seq.num_computed
        last = len(self.seqs) - 1
        slot = seq.slot
        self.seqs[last].slot = slot
        lists: tuple[list[Any], ...] = (self.seqs, self.rows, self.ids, self.appends)
        for items in lists:
            items[slot] = items[last]
            items.pop()
        seq.slot = -1
        seq.due_tick = 0
        for token in seq.stop_token_ids:
            self.stop_counts[token] -= 1
            if not self.stop_counts[token]:
                del self.stop_counts[token]

    def schedule(self, seq: Sequence, page_size: int) -> None:
        """Enter into the calendar when seq ends, or outgrows its pages."""
        length = len(seq.tokens)
        seq.due_tick = self._tick + min(seq.max_len - length, len(seq.pages) * page_size - length + 1)
        self._calendar.setdefault(seq.due_tick, []).append(seq)

    def advance(self) -> list[Sequence]:
        """All have decoded once: those that end now, or outgrew their pages."""
        self._tick = tick = self._tick + 1
        due = []
        for seq in self._calendar.pop(tick, ()):
            if seq.due_tick == tick:
                seq.due_tick = 0
                due.append(seq)
        return due

    def _own(self) -> None:
        if self._lent:
            self.seqs, self.rows, self.ids = self.seqs.copy(), self.rows.copy(), self.ids.copy()
            self.appends = self.appends.copy()
            self._lent = False
