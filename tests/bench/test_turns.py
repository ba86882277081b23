# SPDX-License-Identifier: Apache-2.0
"""Turns: who stands while the other computes, clocks that stand too, and what is left when one ends."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from itertools import pairwise

import pytest

from bench.turns import Clock, Side, in_turns

STEP_S = 0.002


class FakeEngine:
    """Computes steps in a thread of its own until it is closed, as an engine does that always has work."""

    def __init__(self, side, spans=None):
        self._side, self._spans = side, [] if spans is None else spans
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _loop(self):
        while not self._closed.is_set():
            began = time.monotonic()
            time.sleep(STEP_S)
            self._spans.append((began, time.monotonic()))
            self._side.stepped(1, STEP_S)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self._closed.set()
        await asyncio.to_thread(self._thread.join)


async def sleeper(seconds, spans, side):
    """So many seconds of its own clock, in naps."""
    async with FakeEngine(side, spans):
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + seconds:
            await asyncio.sleep(0.001)
        return loop.time() - began


async def endless(spans, side):
    async with FakeEngine(side, spans):
        began = side.clock()
        try:
            await asyncio.sleep(3600.0)
        except asyncio.CancelledError:
            return side.clock() - began


def test_a_clock_stands_and_goes_on_from_there():
    clock = Clock()
    clock.stop()
    stood = clock()
    time.sleep(0.02)
    clock.stop()
    assert clock() == stood
    clock.go()
    clock.go()
    assert stood <= clock() < stood + 0.02


def test_steps_of_the_two_never_overlap_and_each_has_half_the_time():
    first, second = [], []
    began = time.monotonic()
    own_s, other_s = in_turns(partial(sleeper, 0.3, first), partial(endless, second), slice_s=0.02)
    wall_s = time.monotonic() - began
    assert 0.3 <= own_s < wall_s
    assert 0.3 < other_s + 0.1 < wall_s
    assert own_s + other_s <= wall_s
    # Starts and ends apart, where the one closes while the other goes on.
    spans = sorted([*((*span, 1) for span in first[1:-1]), *((*span, 2) for span in second[1:-1])])
    switches = [(a, b) for a, b in pairwise(spans) if a[2] != b[2]]
    assert len(switches) >= 8
    assert all(a[1] <= b[0] for a, b in switches)


def test_one_that_ends_leaves_the_other_the_machine():
    async def short(side):
        return "short"

    own_s, other = in_turns(partial(sleeper, 0.05, []), short, slice_s=0.01)
    assert own_s >= 0.05
    assert other == "short"


@pytest.mark.parametrize("first", [True, False])
def test_an_error_of_either_ends_both(first):
    async def failing(side):
        raise ValueError("no such luck")

    bodies = (failing, partial(endless, [])) if first else (partial(endless, []), failing)
    before = threading.active_count()
    with pytest.raises(ValueError, match="no such luck"):
        in_turns(*bodies, slice_s=0.01)
    assert threading.active_count() == before


def test_a_side_cancelled_before_it_began_ends():
    side = Side(partial(endless, []))
    side.cancel()
    with pytest.raises(asyncio.CancelledError):
        side.run()
