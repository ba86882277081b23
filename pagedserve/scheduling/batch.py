# SPDX-License-Identifier: Apache-2.0
"""The sequences that decode, and the step that is out."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pagedserve.scheduling.cost import StepShape
from pagedserve.scheduling.events import Chunk, StepPlan
from pagedserve.scheduling.request import Sequence


class DecodeBatch:
    """The sequences that decode, each with one token in and one out per step.

    The lists stay the same objects until who decodes changes. What a sequence meets on its way, the end of its
    page or its last token, is known beforehand, so it stands in a calendar under the step at which it happens: a step
    costs one append per sequence, one set operation for stop tokens, and work for the few that are due.
    """

    def __init__(self) -> None:
        self.seqs: list[Sequence] = []
        self.rows: list[int] = []
        self.ids: list[str] = []
        self._tokens: list[array[int]] = []  # each sequence's own
        self._stops: Counter[int] = Counter()  # stop token -> how many have it
        self._tick = 0
        self._calendar: dict[int, list[Sequence]] = {}
        self.context = 0  # their tokens, summed
        self.lent = False  # to a plan: the lists do not change any more, copies take their place

    def __len__(self) -> int:
        return len(self.seqs)

    def join(self, seq: Sequence) -> None:
        """seq decodes from the next plan on."""
        self._own()
        seq.slot = len(self.seqs)
        self.seqs.append(seq)
        self.rows.append(seq.row)
        self.ids.append(seq.id)
        self._tokens.append(seq.tokens)
        self._stops.update(seq.stop_token_ids)
        self.context += len(seq.tokens)

    def leave(self, seq: Sequence) -> None:
        """seq does not decode any more; the last takes its place."""
        self._own()
        self.seqs[-1].slot = slot = seq.slot
        lists: tuple[list[Any], ...] = (self.seqs, self.rows, self.ids, self._tokens)
        for items in lists:
            items[slot] = items[-1]
            items.pop()
        seq.slot, seq.due_tick = -1, 0
        self._stops -= Counter(seq.stop_token_ids)
        self.context -= len(seq.tokens)

    def schedule(self, seq: Sequence, page_size: int) -> None:
        """Enter into the calendar when seq ends, or outgrows its pages."""
        length = len(seq.tokens)
        seq.due_tick = self._tick + min(seq.max_len - length, len(seq.pages) * page_size - length + 1)
        self._calendar.setdefault(seq.due_tick, []).append(seq)

    def append(self, tokens: Collection[int]) -> None:
        """A token for each sequence."""
        deque(map(array.append, self._tokens, tokens), maxlen=0)
        self.context += len(tokens)

    def may_stop(self, tokens: Collection[int]) -> bool:
        """One of the tokens is somebody's stop token."""
        return not self._stops.keys().isdisjoint(tokens)

    def advance(self) -> list[Sequence]:
        """All have decoded once: those that end now, or outgrew their pages."""
        self._tick += 1
        due = []
        for seq in self._calendar.pop(self._tick, ()):
            if seq.due_tick == self._tick:
                seq.due_tick = 0  # whoever left and came back may stand here twice
                due.append(seq)
        return due

    def leap(self, num_steps: int, token: int) -> Iterator[list[Sequence]]:
        """Each gets the token in each of so many steps; those that outgrew their pages, step by step."""
        end = self._tick + num_steps
        while self._tick < end:
            due = next((tick for tick in range(self._tick + 1, end) if tick in self._calendar), end)
            run = array("Q", [token]) * (due - self._tick)
            for tokens in self._tokens:
                tokens.extend(run)
            self.context += len(run) * len(self)
            self._tick = due - 1
            yield self.advance()

    def _own(self) -> None:
        if self.lent:
            self.seqs, self.rows, self.ids = self.seqs.copy(), self.rows.copy(), self.ids.copy()
            self._tokens = self._tokens.copy()
            self.lent = False


def next_chunk(seq: Sequence, most: int) -> Chunk:
    """Of a prompt, from where it stands, of at most so many tokens."""
    num_tokens = min(most, len(seq.tokens) - seq.computed)
    return Chunk(seq.id, seq.row, seq.computed, num_tokens, seq.computed + num_tokens == len(seq.tokens))


@dataclass(slots=True)
class Flight:
    """The step that is out."""

    plan: StepPlan
    decodes: list[Sequence]  # beside plan.decode_rows
    prompts: list[Sequence]  # beside plan.chunks
    t: float  # when it was planned
    alone: bool = False  # one suspect of a failed step
    thinned: bool = False  # not of all that decode: one is alone, or one ended since it was planned

    @staticmethod
    def of_one(plan: StepPlan, seq: Sequence, num_tokens: int, t: float) -> Flight:
        """A suspect of a failed step, with at most so many tokens; plan says of nobody else."""
        if seq.slot >= 0:
            plan.decode_rows, plan.decode_ids, plan.shape = [seq.row], [seq.id], StepShape(1, 1, len(seq.tokens), 0)
            return Flight(plan, [seq], [], t, alone=True, thinned=True)
        plan.chunks.append(next_chunk(seq, num_tokens))
        plan.shape = plan.shape.plus(seq.computed, plan.chunks[0].num_tokens)
        return Flight(plan, [], [seq], t, alone=True, thinned=True)

    @property
    def seqs(self) -> list[Sequence]:
        """Every sequence of the step."""
        return self.decodes + self.prompts
