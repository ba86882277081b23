# SPDX-License-Identifier: Apache-2.0
"""The pages of sequences: found in the prefix cache, taken, shared, swapped, given back; and the plan's moves."""

from __future__ import annotations

from itertools import count, repeat

from pagedserve.scheduling.config import SchedulerConfig, SchedulerStats
from pagedserve.scheduling.events import StepPlan
from pagedserve.scheduling.pages import PageAllocator
from pagedserve.scheduling.policy import recompute_cost
from pagedserve.scheduling.prefix import Key, Node, PrefixCache
from pagedserve.scheduling.request import Sequence

Front = tuple[Node | str, Key | tuple[str]]


class Memory:
    """The pool on the device, the pool on the host, the prefix cache, and the moves that the next plan must carry."""

    def __init__(self, config: SchedulerConfig, stats: SchedulerStats) -> None:
        parity = config.attention_parity_tokens
        self.pages = PageAllocator(config.num_pages)
        self.host = PageAllocator(config.num_host_pages)
        self.cache = PrefixCache(self.pages, config.page_size, lambda start, stop: recompute_cost(start, stop, parity))
        self._stats = stats
        self._caching = config.prefix_cache
        self._page_size = config.page_size
        self._moves = StepPlan(-1)  # the next plan, of which only the moves are known
        self._copied: list[Node] = []  # sources of its copies, held until it is taken
        self._leaving: list[Sequence] = []  # whom its swaps out are for
        self._fronts: set[Front] = set()  # pages of which it computes the first tokens

    def admit(self, seq: Sequence, row: int, reserve: int) -> bool:
        """Give seq pages for all its tokens and set what of them is computed, with reserve pages left available.

        False where the pool cannot, which sets seq.needs_pages; or where the next plan computes the page that seq would
        begin with, which sets seq.was_held: after that step it is found. O(its tokens).
        """
        pages, size = self.pages, self._page_size
        # Its last token is always computed: its logits are wanted.
        limit = len(seq.tokens) - 1 if self._caching else 0
        nodes, partial, num_partial = self.cache.match(seq.arrival.cache_salt, seq.tokens, limit)
        num_found = len(nodes)
        swapped = seq.host_pages[num_found:]
        front = self._front(seq, nodes[-1] if nodes else None, num_found * size, limit)
        if front in self._fronts and not (seq.was_held or swapped):
            seq.was_held = True
            return False
        num_new = -(-len(seq.tokens) // size) - num_found
        needed = num_new + sum(pages.is_idle(node.page) for node in nodes) + reserve
        if pages.num_available < needed:
            seq.needs_pages = needed
            return False
        if partial is not None and (swapped or pages.num_available - pages.is_idle(partial.page) < needed):
            partial = None  # not wanted, or its page is needed for more than a copy

        for node in nodes if partial is None else [*nodes, partial]:
            pages.share(node.page)
        self.cache.evict(num_new - pages.num_free)
        seq.pages = [node.page for node in nodes] + pages.take(num_new)
        seq.node, seq.num_shared = (nodes[-1] if nodes else None), num_found
        seq.prefix_hit_tokens = num_found * size
        if partial is not None:
            self._moves.copies.append((partial.page, seq.pages[num_found]))
            self._copied.append(partial)
            seq.prefix_hit_tokens += num_partial
        if swapped:
            self._moves.swap_in.extend(zip(swapped, seq.pages[num_found:], strict=False))
        else:
            seq.computed = seq.prefix_hit_tokens
            self._fronts.add(front)
        self._moves.page_writes.extend(zip(repeat(row), count(), seq.pages, strict=False))
        self._free_host_pages(seq)
        self._stats.recomputed_tokens += max(0, seq.peak - seq.computed)
        if seq.preemptions == 0:
            self._stats.prefix_queries += 1
            self._stats.prefix_query_tokens += len(seq.tokens)
            self._stats.prefix_hit_tokens += seq.computed
        return True

    def num_cached(self, seq: Sequence) -> int:
        """Tokens of a waiting sequence that need not be computed, as things stand. O(its tokens)."""
        if seq.host_pages:
            return seq.computed
        limit = len(seq.tokens) - 1 if self._caching else 0
        return len(self.cache.match(seq.arrival.cache_salt, seq.tokens, limit)[0]) * self._page_size

    def goes_on(self, seq: Sequence) -> None:
        """The next plan computes a chunk of seq, which has started before."""
        self._fronts.add(self._front(seq, seq.node, seq.num_shared * self._page_size, len(seq.tokens) - 1))

    def grow(self, seq: Sequence) -> bool:
        """One more page; False where the pool has none to give."""
        if not self.pages.num_free and not self.cache.evict(1):
            return False
        [page] = self.pages.take()
        self._moves.page_writes.append((seq.row, len(seq.pages), page))
        seq.pages.append(page)
        return True

    def cache_computed(self, seq: Sequence) -> None:
        """Into the prefix cache: the pages that seq filled. Where one is there already, seq goes on with that."""
        size, tokens = self._page_size, seq.tokens
        num_full = seq.num_computed // size if self._caching else 0
        for i in range(seq.num_shared, num_full):
            page = seq.pages[i]
            node = self._insert(seq, tokens[i * size : i * size + size].tobytes())
            seq.tail = None
            if node is None:
                return
            if node.page != page:
                self.pages.share(node.page)
                self.pages.release(page)
                seq.pages[i] = node.page
                self._moves.page_writes.append((seq.row, i, node.page))
            seq.node = node
            seq.num_shared = i + 1

    def cache_tail(self, seq: Sequence) -> None:
        """Into the prefix cache: the computed tokens of the last page, filled in part. After cache_computed."""
        begin, end = seq.num_shared * self._page_size, seq.num_computed
        if self._caching and 0 < end - begin < self._page_size:
            node = self._insert(seq, seq.tokens[begin:end].tobytes())
            seq.tail = node if node is not None and node.page == seq.pages[seq.num_shared] else None

    def release(self, seq: Sequence) -> None:
        """Give its pages back; those with computed tokens stay in the prefix cache. seq.row is still the one it had."""
        self.cache_computed(seq)
        self.cache_tail(seq)
        self._release_pages(seq)
        seq.computed = 0

    def swap_out(self, seq: Sequence) -> None:
        """Give its pages back, their contents moved to the host, which has room for them."""
        seq.computed = seq.num_computed
        seq.host_pages = self.host.take(-(-seq.computed // self._page_size))
        self._moves.swap_out.extend(zip(seq.pages, seq.host_pages, strict=False))
        self._leaving.append(seq)
        self._stats.swaps += 1
        self._release_pages(seq)

    def forget(self, seq: Sequence) -> None:
        """As release, but its pages may hold nonsense. Those it found stay where it sampled a token with them."""
        trusted = seq.prefix_hit_tokens // self._page_size if seq.slot >= 0 else 0
        node, top = (seq.tail or seq.node), None
        while node is not None and node.depth > trusted:
            top, node = node, node.parent
        if top is not None:
            self.cache.forget(top)
        self._release_pages(seq)

    def drop_host(self, seq: Sequence) -> None:
        """Give back its pages on the host; a swap to there that no plan carries yet is not made."""
        lost = frozenset(seq.host_pages)
        if lost and self._moves.swap_out:
            self._moves.swap_out = [move for move in self._moves.swap_out if move[1] not in lost]
        self._free_host_pages(seq)

    def take_plan(self) -> StepPlan:
        """The plan that carries the moves so far; all else in it is the caller's."""
        plan, self._moves = self._moves, StepPlan(-1)
        for node in self._copied:
            self.pages.release(node.page)
            self.cache.touch(node)
        self._copied, self._leaving = [], []
        self._fronts.clear()
        return plan

    def resize(self, num_pages: int) -> None:
        """No sequence holds a page from num_pages on. What was to be swapped out from one is lost."""
        if num_pages < self.pages.num_pages:
            for seq in self._leaving:
                self.drop_host(seq)
                seq.computed = 0
            self._leaving = []
            for node in [node for node in self.cache.nodes() if node.page >= num_pages]:
                self.cache.forget(node)
        self.pages.resize(num_pages)

    def _front(self, seq: Sequence, node: Node | None, start: int, limit: int) -> Front:
        """The whole page that seq would compute first; its id where there is none."""
        stop = start + self._page_size
        return node or seq.arrival.cache_salt, seq.tokens[start:stop].tobytes() if stop <= limit else (seq.id,)

    def _insert(self, seq: Sequence, key: Key) -> Node | None:
        """The node that holds key after seq's last whole page there; a new one where there is none."""
        if seq.tail is not None:
            return self.cache.lengthen(seq.tail, key)
        return self.cache.extend(seq.node, seq.arrival.cache_salt, key, seq.pages[seq.num_shared])

    def _free_host_pages(self, seq: Sequence) -> None:
        self.host.release(*seq.host_pages)
        seq.host_pages = []

    def _release_pages(self, seq: Sequence) -> None:
        self.pages.release(*seq.pages)
        last = next((node for node in (seq.tail, seq.node) if node is not None and not node.dead), None)
        if last is not None:
            self.cache.touch(last)
        seq.pages, seq.node, seq.num_shared, seq.tail = [], None, 0, None
        if self._moves.page_writes:
            self._moves.page_writes = [write for write in self._moves.page_writes if write[0] != seq.row]
