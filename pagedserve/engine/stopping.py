# SPDX-License-Identifier: Apache-2.0
"""Stop strings, found wherever token borders fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until one of the stop strings is complete.

    The stop string that is complete first wins; of those complete at the same character, the longest. So the
    result depends on the text alone, never on how it was cut into pieces. Text that may yet become a stop
    string is held back. One state a stop string (Knuth, Morris & Pratt 1977): linear in the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._borders = tuple(_borders(stop) for stop in stops)
        self._matched = [0] * len(self._stops)  # characters of each stop string that the text ends with
        self._held = ""

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Take in more text.

        Args:
            armed: False: a stop string that is complete in this text does not count.

        Returns:
            the text that is now safe to give out, and the stop string found, after which nothing may be fed.
        """
        held = self._held + text
        matched = self._matched
        for position in range(len(self._held), len(held)):
            character = held[position]
            found = ""
            for i, stop in enumerate(self._stops):
                length = matched[i]
                while length and (length == len(stop) or stop[length] != character):
                    length = self._borders[i][length]
                if stop[length] == character:
                    length += 1
                matched[i] = length
                if length == len(stop) > len(found):
                    found = stop
            if found and armed:
                self._held = ""
                return held[: position + 1 - len(found)], found
        keep = max((self._proper(i) for i in range(len(matched))), default=0)
        cut = len(held) - keep
        self._held = held[cut:]
        return held[:cut], None

    def flush(self) -> str:
        """The held text, once no more can come."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _proper(self, i: int) -> int:
        """How much of the text's end may yet become stop string i; one complete while unarmed counts by its border."""
        length = self._matched[i]
        return self._borders[i][length] if length == len(self._stops[i]) else length


def _borders(stop: str) -> list[int]:
    """borders[length]: the longest proper prefix of stop[:length] that is also its suffix."""
    borders = [0] * (len(stop) + 1)
    length = 0
    for end in range(1, len(stop)):
        while length and stop[length] != stop[end]:
            length = borders[length]
        if stop[length] == stop[end]:
            length += 1
        borders[end + 1] = length
    return borders
