# SPDX-License-Identifier: Apache-2.0
"""Who holds which page of the pool: a free list and a count of holders per page."""

from __future__ import annotations

from pagedserve.errors import InvalidInput


class PageAllocator:
    """Pages 0 .. num_pages - 1 of a pool, each free or held by one or more holders.

    A holder is a sequence whose page table names the page, or the prefix cache, which keeps at most one
    hold per page (`keep`). A page that only the prefix cache holds is idle: it can be had by evicting it.

    Every operation is O(1) a page. InvalidInput where the page's holders contradict it, as with a second release.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_idle = 0
        self._holders = [0] * num_pages
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

    def is_idle(self, page: int) -> bool:
        """The prefix cache is the page's only holder."""
        return self._holders[page] == 1 and self._kept[page] == 1

    def take(self, count: int = 1) -> list[int]:
        """Free pages, each held once."""
        split = len(self._free) - count
        if split < 0:
            raise InvalidInput(f"{count} pages are wanted, {len(self._free)} of {self.num_pages} are free; evict first")
        pages, self._free[split:] = self._free[split:], []
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, page: int) -> None:
        """One more holder of a page that has one already."""
        holders = self._holders[page]
        if holders == 0:
            raise InvalidInput(f"page {page} is free and cannot be shared; take it instead")
        if holders == 1 and self._kept[page]:
            self.num_idle -= 1
        self._holders[page] = holders + 1

    def release(self, *pages: int) -> None:
        """One holder fewer of each; the last one frees the page."""
        for page in pages:
            holders = self._holders[page] - 1
            if holders < self._kept[page]:
                raise InvalidInput(f"page {page} was released twice")
            self._holders[page] = holders
            if holders == 0:
                self._free.append(page)
            elif holders == 1 and self._kept[page]:
                self.num_idle += 1

    def keep(self, page: int) -> None:
        """The prefix cache becomes one more holder of a page that a sequence holds."""
        if self._kept[page] or not self._holders[page]:
            raise InvalidInput(f"page {page} is free or in the prefix cache already")
        self._holders[page] += 1
        self._kept[page] = 1

    def drop(self, page: int) -> None:
        """The prefix cache gives up its hold."""
        if not self._kept[page]:
            raise InvalidInput(f"page {page} is not in the prefix cache and cannot be dropped from it")
        self.num_idle -= self._holders[page] == 1
        self._kept[page] = 0
        self.release(page)

    def resize(self, num_pages: int) -> None:
        """Grow, or shrink where every page from num_pages on is free. O(pages)."""
        if any(self._holders[num_pages:]):
            raise InvalidInput(f"cannot shrink to {num_pages} pages while others beyond are held")
        added = num_pages - self.num_pages
        self._free = list(range(num_pages - 1, self.num_pages - 1, -1)) + [p for p in self._free if p < num_pages]
        self._holders = self._holders[:num_pages] + [0] * added
        self._kept = self._kept[:num_pages] + bytes(max(added, 0))
        self.num_pages = num_pages
