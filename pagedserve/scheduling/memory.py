# SPDX-License-Identifier: Apache-2.0
"""The pages of sequences: found in the prefix cache, taken, shared, swapped, given back; and the plan's moves."""

from __future__ import annotations

from collections.abc import Iterable

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.events import StepPlan
from pagedserve.scheduling.pages import PageAllocator
from pagedserve.scheduling.policy import recompute_cost
from pagedserve.scheduling.prefix import Match, Node, PrefixCache
from pagedserve.scheduling.request import Sequence


class Memory:
    """The pool on the device, the pool on the host, the prefix cache, and the moves that the next plan must carry."""

    def __init__(self, config: SchedulerConfig) -> None:
        parity = config.attention_parity_tokens
        self.pages = PageAllocator(config.num_pages)
        self.host = PageAllocator(config.num_host_pages) if config.num_host_pages else None
        self.cache = PrefixCache(self.pages, config.page_size, lambda start, stop: recompute_cost(start, stop, parity))
        self.num_queries = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_swaps = 0
        self._caching = config.prefix_cache
        self._page_size = config.page_size
        self._page_writes: list[tuple[int, int, int]] = []
        self._copies: list[tuple[int, int]] = []
        self._swap_out: list[tuple[int, int]] = []
        self._swap_in: list[tuple[int, int]] = []
        self._copied: list[Node] = []  # sources of copies, held until the plan is made
        self._leaving: list[Sequence] = []  # swapped out since the last plan

    @property
    def num_free_host_pages(self) -> int:
        return 0 if self.host is None else self.host.num_free

    def admit(self, seq: Sequence, row: int, reserve: int) -> bool:
        """Give seq pages for all its tokens and set what of them is computed; False where the pool cannot.

        reserve pages are left available. On False only seq.needs_pages changes: no use in trying with fewer available.
        """
        pages, size = self.pages, self._page_size
        match = self._match(seq)
        nodes = match.nodes
        swapped = seq.host_pages if len(seq.host_pages) > len(nodes) else []
        partial = None if swapped else match.partial
        num_new = -(-len(seq.tokens) // size) - len(nodes)
        needed = num_new + sum(pages.is_idle(node.page) for node in nodes)
        if pages.num_available < needed + reserve:
            seq.needs_pages = needed + reserve
            return False
        if partial is not None and pages.num_available - pages.is_idle(partial.page) < needed + reserve:
            partial = None

        for node in nodes:
            pages.share(node.page)
        if partial is not None:
            pages.share(partial.page)
            self._copied.append(partial)
        self._make_room(num_new)
        seq.pages = [node.page for node in nodes] + [pages.take() for _ in range(num_new)]
        seq.node, seq.num_shared = (nodes[-1] if nodes else None), len(nodes)
        if swapped:
            self._swap_in.extend(zip(swapped[len(nodes) :], seq.pages[len(nodes) :], strict=False))
        else:
            seq.computed = len(nodes) * size
            if partial is not None:
                self._copies.append((partial.page, seq.pages[len(nodes)]))
                seq.computed += match.num_partial
        self._page_writes.extend((row, i, page) for i, page in enumerate(seq.pages))
        self._count_start(seq, swapped)
        self.drop_host(seq, pending=False)
        return True

    def grow(self, seq: Sequence) -> bool:
        """One more page; False where the pool has none to give."""
        if not self.pages.num_free and not self.cache.evict(1):
            return False
        page = self.pages.take()
        self._page_writes.append((seq.row, len(seq.pages), page))
        seq.pages.append(page)
        return True

    def cache_computed(self, seq: Sequence) -> None:
        """Into the prefix cache: the pages that seq filled since the last call. O(their tokens).

        Where the cache has such a page already, seq goes on with that one.
        """
        if not self._caching:
            return
        size = self._page_size
        num_full = seq.num_computed // size
        while seq.num_shared < num_full:
            i = seq.num_shared
            page = seq.pages[i]
            key = tuple(seq.tokens[i * size : i * size + size])
            if seq.tail is None:
                node = self.cache.extend(seq.node, seq.cache_salt, key, page)
            else:
                node = self.cache.lengthen(seq.tail, key)
                seq.tail = None
            if node is None:
                return
            if node.page != page:
                self.pages.share(node.page)
                self.pages.release(page)
                seq.pages[i] = node.page
                self._page_writes.append((seq.row, i, node.page))
            seq.node = node
            seq.num_shared = i + 1

    def cache_tail(self, seq: Sequence) -> None:
        """Into the prefix cache: the computed tokens of the last page, filled in part. After cache_computed."""
        size = self._page_size
        begin, end = seq.num_shared * size, seq.num_computed
        if not self._caching or not 0 < end - begin < size:
            return
        key = tuple(seq.tokens[begin:end])
        if seq.tail is not None:
            node = self.cache.lengthen(seq.tail, key)
        else:
            node = self.cache.extend(seq.node, seq.cache_salt, key, seq.pages[seq.num_shared])
        seq.tail = node if node is not None and node.page == seq.pages[seq.num_shared] else None

    def release(self, seq: Sequence) -> None:
        """Give its pages back; those with computed tokens stay in the prefix cache. seq.row is still the one it had."""
        self.cache_computed(seq)
        self.cache_tail(seq)
        self._release_pages(seq)

    def swap_out(self, seq: Sequence) -> None:
        """Give its pages back, their contents moved to the host."""
        assert self.host is not None
        num_pages = -(-seq.num_computed // self._page_size)
        seq.host_pages = [self.host.take() for _ in range(num_pages)]
        self._swap_out.extend(zip(seq.pages, seq.host_pages, strict=False))
        self._leaving.append(seq)
        self.num_swaps += 1
        self._release_pages(seq)

    def forget(self, seq: Sequence, sampled: bool) -> None:
        """Its pages may hold nonsense: out of the prefix cache, then give them back.

        The pages it found there stay where it sampled a token with them: then they are sound.
        """
        trusted = seq.prefix_hit_tokens // self._page_size if sampled else 0
        node, top = (seq.tail or seq.node), None
        while node is not None and node.depth > trusted:
            top, node = node, node.parent
        if top is not None:
            self.cache.forget(top)
        self._release_pages(seq)

    def drop_host(self, seq: Sequence, pending: bool = True) -> None:
        """Give back its pages on the host; a move to there that no plan carries yet is not made (pending)."""
        if not seq.host_pages or self.host is None:
            return
        if pending and self._swap_out:
            mine = frozenset(seq.host_pages)
            self._swap_out = [move for move in self._swap_out if move[1] not in mine]
        for page in seq.host_pages:
            self.host.release(page)
        seq.host_pages = []

    def hand_over(self, plan: StepPlan) -> None:
        """Put the moves into the plan."""
        plan.page_writes, self._page_writes = self._page_writes, []
        plan.swap_out, self._swap_out = self._swap_out, []
        plan.copies, self._copies = self._copies, []
        plan.swap_in, self._swap_in = self._swap_in, []
        self._leaving = []
        for node in self._copied:
            self.pages.release(node.page)
            self.cache.touch(node)
        self._copied = []

    def resize(self, num_pages: int) -> None:
        """No sequence holds a page from num_pages on. What was to be swapped out from one is lost."""
        if num_pages < self.pages.num_pages:
            for seq in self._leaving:
                self.drop_host(seq)
                seq.computed = 0
            self._leaving = []
            self.cache.forget_pages_from(num_pages)
        self.pages.resize(num_pages)

    def audit(self, sequences: Iterable[Sequence]) -> None:
        """Raise where a page is leaked, lost or doubly held. O(pages)."""
        holders: dict[int, int] = {}
        on_host: dict[int, int] = {}
        kept = [node.page for node in self.cache.nodes()]
        for page in kept + [node.page for node in self._copied]:
            holders[page] = holders.get(page, 0) + 1
        for seq in sequences:
            for page in seq.pages:
                holders[page] = holders.get(page, 0) + 1
            for page in seq.host_pages:
                on_host[page] = on_host.get(page, 0) + 1
        self.pages.audit(holders, kept)
        if self.host is not None:
            self.host.audit(on_host)

    def _match(self, seq: Sequence) -> Match:
        """Of all its tokens but the last, which is always computed: its logits are wanted."""
        if not self._caching:
            return Match([])
        return self.cache.match(seq.cache_salt, seq.tokens, len(seq.tokens) - 1)

    def _make_room(self, num_pages: int) -> None:
        missing = num_pages - self.pages.num_free
        if missing > 0:
            self.cache.evict(missing)

    def _count_start(self, seq: Sequence, swapped: list[int]) -> None:
        seq.prefix_hit_tokens = seq.num_shared * self._page_size if swapped else seq.computed
        self.num_recomputed_tokens += max(0, seq.peak - seq.computed)
        if seq.preemptions == 0:
            self.num_queries += 1
            self.num_query_tokens += len(seq.tokens)
            self.num_hit_tokens += seq.computed

    def _release_pages(self, seq: Sequence) -> None:
        for page in seq.pages:
            self.pages.release(page)
        for node in (seq.tail, seq.node):
            if node is not None and not node.dead:
                self.cache.touch(node)
                break
        seq.pages, seq.node, seq.num_shared, seq.tail = [], None, 0, None
        if self._page_writes:
            self._page_writes = [write for write in self._page_writes if write[0] != seq.row]
