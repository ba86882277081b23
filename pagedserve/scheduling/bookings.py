# SPDX-License-Identifier: Apache-2.0
"""Places kept for those who were sent away with a time to come back."""

from __future__ import annotations

import math
from typing import NamedTuple

HOLD_S = 2.0  # after its time a place is kept for so long, less and less
LEARN = 0.1  # how fast the share of those who come back is learnt
MOST = 4096  # places that are kept; to who is beyond that a time is told alone


class Booking(NamedTuple):
    """From when on a place is kept, and the seconds of work that it stands for."""

    start_s: float
    work_s: float


class Bookings:
    """By tenant and id; times follow one another at half the rate at which newcomers are served: half of the places
    are left for those who come for the first time."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], Booking] = {}  # in the order of their times
        self._next_s, self._share = -math.inf, 1.0  # the share of those told that come back, lately

    def book(self, who: tuple[str, str], now: float, excess_s: float, work_s: float) -> tuple[float, float | None]:
        """When to come back, not before the backlog is short enough, and for how long from then on a place is kept.

        Both in seconds. Who comes too early is told the same time again.
        """
        if who in self._places:
            return self._places[who].start_s - now, HOLD_S
        self._forget(now)
        start_s = max(now + excess_s, self._next_s)
        self._next_s = start_s + 2 * work_s
        if len(self._places) >= MOST:
            return start_s - now, None
        self._places[who] = Booking(start_s, work_s)
        return start_s - now, HOLD_S

    def claim(self, who: tuple[str, str], now: float) -> bool:
        """Whether a place is kept for somebody who is here now; that place is kept no more."""
        self._forget(now)
        if who not in self._places or self._places[who].start_s > now + 1e-3:
            return False
        del self._places[who]
        self._share += LEARN * (1.0 - self._share)
        return True

    def held(self, now: float) -> tuple[int, float]:
        """Places to leave to those whose time has come, or comes before work taken on now is done; and their seconds.

        O(places whose time has come).
        """
        self._forget(now)
        count, work_s = 0, 0.0
        for booking in self._places.values():
            if booking.start_s - now > work_s + 2 * booking.work_s:
                break
            count += 1
            work_s += booking.work_s * min(1.0, 1.0 - (now - booking.start_s) / HOLD_S)
        return round(count * self._share), work_s * self._share

    def _forget(self, now: float) -> None:
        """Places that were kept for long enough."""
        while self._places and now - next(iter(self._places.values())).start_s > HOLD_S:
            del self._places[next(iter(self._places))]
            self._share -= LEARN * self._share
