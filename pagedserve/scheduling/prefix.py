# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: a radix tree over pages, one tree per salt.

A node is a page and the tokens in it, of 8 bytes each: bytes are compared at once, and the garbage collector has
nothing to look through. An inner node's page is full; a leaf's may be filled in part. A match is made
token by token: whole pages are shared, and a page that matches in part is copied by whoever goes on from there.
Siblings are sorted, so the one with the longest common prefix is beside the place where a key would stand.

Eviction takes idle leaves by GreedyDual (Young 1994): a node is worth the tree's floor at its last use plus the price
of computing it again, the cheapest goes, and the floor rises to its worth. With equal prices that is LRU.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import attrgetter

from pagedserve.scheduling.pages import PageAllocator

Key = bytes
TOKEN_BYTES = 8
_KEY = attrgetter("key")


class Node:
    """A page in the tree, or a tree's root (depth 0, no page, its own parent). depth counts pages from the root."""

    salt = ""  # a root's
    worth = 0.0
    used = 0
    serial = 0  # of its valid entry in the eviction heap
    dead = False

    def __init__(self, parent: Node | None, key: Key, page: int) -> None:
        self.parent: Node = parent or self
        self.depth: int = parent.depth + 1 if parent else 0
        self.key = key
        self.page = page
        self.children: list[Node] = []  # sorted by key


class PrefixCache:
    """Which page holds which prefix. price(start, stop) is that of computing tokens [start, stop) again."""

    def __init__(self, pages: PageAllocator, page_size: int, price: Callable[[int, int], float]) -> None:
        self._pages = pages
        self._page_size = page_size
        self._price = price
        self._roots: dict[str, Node] = {}
        self._heap: list[tuple[float, int, int, Node]] = []  # worth, used, serial
        self._floor = 0.0
        self._num_nodes = self._num_uses = self._num_offers = 0

    def match(self, salt: str, tokens: array[int], limit: int) -> tuple[list[Node], Node | None, int]:
        """What the tree holds of tokens[:limit]: whole pages, then a page of which so many tokens match. O(limit)."""
        nodes: list[Node] = []
        node = self._roots.get(salt)
        while node is not None:
            start = len(nodes) * self._page_size
            key = tokens[start : min(start + self._page_size, limit)].tobytes()
            place = bisect_left(node.children, key, key=_KEY)
            beside = node.children[max(place - 1, 0) : place + 1]
            if beside and len(key) == self._page_size * TOKEN_BYTES and beside[-1].key == key:
                node = beside[-1]
                nodes.append(node)
                continue
            best = max(beside, key=lambda sibling: _common_length(sibling.key, key), default=None)
            length = _common_length(best.key, key) if best else 0
            return nodes, best if length else None, length
        return nodes, None, 0

    def extend(self, node: Node | None, salt: str, key: Key, page: int) -> Node | None:
        """The child of node (None: a root) that begins with key, else a new one on page. None: node was forgotten."""
        if node is None:
            node = self._roots.setdefault(salt, Node(None, b"", -1))
            node.salt = salt
        if node.dead:
            return None
        child = _beginning_with(node, key) if node.children else None
        if child is None:
            child = Node(node, key, page)
            self._pages.keep(page)
            self._num_nodes += 1
            self._attach(child)
        return child

    def lengthen(self, leaf: Node, key: Key) -> Node | None:
        """The leaf, now with key; or the sibling that begins with key, and the leaf goes. None: as in extend."""
        if leaf.dead or leaf.key == key:
            return None if leaf.dead else leaf
        other = _beginning_with(leaf.parent, key)
        self._detach(leaf)
        if other is None:
            leaf.key = key
            self._attach(leaf)
            return leaf
        self._bury(leaf)
        return other

    def touch(self, node: Node) -> None:
        """node and all above it were used just now; to be called once its users' holds are as they will stay."""
        self._num_uses += 1
        here = node
        while here.depth:
            start = (here.depth - 1) * self._page_size
            here.worth = self._floor + self._price(start, start + len(here.key) // TOKEN_BYTES)
            here.used = self._num_uses
            here = here.parent
        self._offer(node)

    def evict(self, count: int) -> int:
        """Free up to count pages that nobody else holds; how many were freed. O(log nodes) each."""
        freed = 0
        while freed < count and self._heap:
            worth, _, serial, node = heapq.heappop(self._heap)
            if serial == node.serial and self._is_evictable(node):
                self._floor = max(self._floor, worth)
                self.forget(node)
                freed += 1
        return freed

    def forget(self, node: Node) -> None:
        """Drop node and all below it, whoever else holds their pages."""
        if node.dead:
            return
        self._detach(node)
        stack = [node]
        while stack:
            below = stack.pop()
            stack.extend(below.children)
            self._bury(below)
        parent = node.parent
        if parent.depth:
            self._offer(parent)
        elif not parent.children:
            del self._roots[parent.salt]

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.depth:
                yield node
            stack.extend(node.children)

    def _attach(self, node: Node) -> None:
        """Into its parent's children. An idle sibling that node begins with has served its time."""
        siblings = node.parent.children
        place = bisect_left(siblings, node.key, key=_KEY) if siblings else 0
        before = siblings[place - 1] if place else None
        if before and node.key[: len(before.key)] == before.key and self._pages.is_idle(before.page):
            self._detach(before)
            self._bury(before)
            place -= 1
        siblings.insert(place, node)

    def _detach(self, node: Node) -> None:
        siblings = node.parent.children
        del siblings[bisect_left(siblings, node.key, key=_KEY)]

    def _bury(self, node: Node) -> None:
        node.dead = True
        self._num_nodes -= 1
        self._pages.drop(node.page)

    def _is_evictable(self, node: Node) -> bool:
        return not node.dead and not node.children and self._pages.is_idle(node.page)

    def _offer(self, node: Node) -> None:
        """To eviction, if that may take it."""
        if not self._is_evictable(node):
            return
        self._num_offers += 1
        node.serial = self._num_offers
        heapq.heappush(self._heap, (node.worth, node.used, node.serial, node))
        if len(self._heap) > 64 + 2 * self._num_nodes:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].serial and self._is_evictable(entry[3])]
            heapq.heapify(self._heap)


def _beginning_with(parent: Node, key: Key) -> Node | None:
    place = bisect_left(parent.children, key, key=_KEY)
    child = parent.children[place] if place < len(parent.children) else None
    return child if child and child.key[: len(key)] == key else None


def _common_length(a: Key, b: Key) -> int:
    """Tokens that both begin with."""
    num_bytes = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return num_bytes // TOKEN_BYTES
