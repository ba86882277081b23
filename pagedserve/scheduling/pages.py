# SPDX-License-Identifier: Apache-2.0
"""Who holds which page of the pool: a free list and a count of holders per page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pagedserve.errors import InvalidInput


class PageAllocator:
    """Pages 0 .. num_pages - 1 of a pool, each free or held by one or more holders.

    A holder is a sequence whose page table names the page, or the prefix cache, which keeps at most one
    hold per page (`keep`). A page that only the prefix cache holds is idle: it can be had by evicting it.

    Every operation is O(1); `take` prefers the page that was freed last.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise InvalidInput(f"a pool has at least 1 page, got num_pages={num_pages}")
        self.num_pages = num_pages
        self.num_idle = 0
        self.holders = [0] * num_pages
        self._kept = bytearray(num_pages)
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Pages that can be had without taking one from a sequence: free ones and idle ones."""
        return len(self._free) + self.num_idle

    def take(self) -> int:
        """A free page, held once. InvalidInput where none is free: look at `num_free`, or evict, before."""
        if not self._free:
            raise InvalidInput(f"none of the {self.num_pages} pages is free; evict or preempt before taking one")
        page = self._free.pop()
        self.holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page that has one already."""
        holders = self.holders[page]
        if holders == 0:
            raise InvalidInput(f"page {page} is free and cannot be shared; take it instead")
        if holders == 1 and self._kept[page]:
            self.num_idle -= 1
        self.holders[page] = holders + 1

    def release(self, page: int) -> None:
        """One holder fewer; the last one frees the page."""
        holders = self.holders[page] - 1
        if holders < 0:
            raise InvalidInput(f"page {page} was released twice")
        if self._kept[page]:
            if holders == 0:
                raise InvalidInput(f"page {page} is held by the prefix cache alone; its hold ends with drop()")
            if holders == 1:
                self.num_idle += 1
        self.holders[page] = holders
        if holders == 0:
            self._free.append(page)

    def keep(self, page: int) -> None:
        """The prefix cache becomes one more holder of a page that a sequence holds."""
        if self._kept[page] or self.holders[page] == 0:
            raise InvalidInput(f"page {page} is {'kept already' if self._kept[page] else 'free'} and cannot be kept")
        self._kept[page] = 1
        self.holders[page] += 1

    def drop(self, page: int) -> None:
        """The prefix cache gives up its hold."""
        if not self._kept[page]:
            raise InvalidInput(f"page {page} is not in the prefix cache and cannot be dropped from it")
        if self.holders[page] == 1:
            self.num_idle -= 1
        self._kept[page] = 0
        self.release(page)

    def is_idle(self, page: int) -> bool:
        """The prefix cache is the page's only holder."""
        return self.holders[page] == 1 and self._kept[page] == 1

    def resize(self, num_pages: int) -> None:
        """Grow, or shrink where every page from num_pages on is free. O(pages)."""
        if num_pages < 1:
            raise InvalidInput(f"a pool has at least 1 page, got num_pages={num_pages}")
        held = [page for page in range(num_pages, self.num_pages) if self.holders[page]]
        if held:
            raise InvalidInput(
                f"cannot shrink to {num_pages} pages while {len(held)} beyond are held, as page {held[0]}"
            )
        if num_pages < self.num_pages:
            self._free = [page for page in self._free if page < num_pages]
            del self.holders[num_pages:], self._kept[num_pages:]
        else:
            more = num_pages - self.num_pages
            self._free = list(range(num_pages - 1, self.num_pages - 1, -1)) + self._free
            self.holders.extend([0] * more)
            self._kept.extend(bytes(more))
        self.num_pages = num_pages

    def audit(self, holders: Mapping[int, int], kept: Iterable[int] = ()) -> None:
        """Compare with who should hold what; raise on the first page leaked, lost or doubly free. O(pages).

        Args:
            holders: page -> how many holders it should have, the prefix cache included; absent means none.
            kept: the pages that the prefix cache holds.
        """
        expected_kept = set(kept)
        free = set(self._free)
        if len(free) != len(self._free):
            raise InvalidInput("a page is on the free list twice")
        for page in range(self.num_pages):
            expected = holders.get(page, 0)
            if self.holders[page] != expected:
                kind = "leaked" if self.holders[page] > expected else "lost"
                raise InvalidInput(f"page {page} is {kind}: {self.holders[page]} holders counted, {expected} found")
            if (page in free) != (expected == 0):
                raise InvalidInput(f"page {page} has {expected} holders and is {'' if page in free else 'not '}free")
            if (page in expected_kept) != bool(self._kept[page]):
                raise InvalidInput(f"the prefix cache and the allocator disagree on page {page}")
        idle = sum(1 for page in expected_kept if holders.get(page, 0) == 1)
        if idle != self.num_idle:
            raise InvalidInput(f"{self.num_idle} idle pages counted, {idle} found")
