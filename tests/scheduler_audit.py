# SPDX-License-Identifier: Apache-2.0
"""Whether a scheduler's pages are accounted for: none leaked, lost or doubly held. O(pages)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set

from pagedserve.scheduling.pages import PageAllocator
from pagedserve.scheduling.scheduler import Scheduler


def audit(scheduler: Scheduler) -> None:
    """Every hold that sequences, the prefix cache and copies on their way have is counted, and no other."""
    memory = scheduler._memory
    kept = [node.page for node in memory.cache.nodes()]
    holders, on_host = Counter(kept + [node.page for node in memory._copied]), Counter[int]()
    for seq in scheduler._seqs.values():
        holders.update(seq.pages)
        on_host.update(seq.host_pages)
    audit_pages(memory.pages, holders, frozenset(kept))
    audit_pages(memory.host, on_host, frozenset())


def audit_pages(pages: PageAllocator, holders: Mapping[int, int], kept: Set[int]) -> None:
    """page -> number of holds found, and the pages found in the prefix cache, are as counted."""
    for page, counted in enumerate(pages._holders):
        found = holders.get(page, 0)
        assert counted <= found, f"page {page} is leaked: {counted} holders counted, {found} found"
        assert counted >= found, f"page {page} is lost: {counted} holders counted, {found} found"
        assert (page in kept) == pages._kept[page], f"the prefix cache and the allocator disagree on page {page}"
    assert sorted(pages._free) == [page for page, counted in enumerate(pages._holders) if not counted]
    assert pages.num_idle == sum(map(pages.is_idle, kept))
