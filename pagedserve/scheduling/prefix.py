# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: a radix tree over pages, one tree per salt.

A node is a page and the tokens in it. An inner node's page is full; a leaf's may be filled in part. A match is made
token by token: whole pages are shared, and a page that matches in part is copied by whoever goes on from there.
Siblings are kept sorted, and the sibling with the longest common prefix is beside the place where a key would stand.

Eviction takes idle leaves by GreedyDual (Young 1994): a node is worth the tree's floor at its last use plus the price
of computing it again, the cheapest goes, and the floor rises to its worth. With equal prices that is LRU.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pagedserve.scheduling.pages import PageAllocator

Key = tuple[int, ...]


class Node:
    """A page in the tree, or a tree's root (depth 0, no page). depth counts pages from the root."""

    def __init__(self, parent: Node | None, key: Key, page: int, salt: str) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.salt = salt
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[Key, Node] = {}
        self.keys: list[Key] = []  # of children, sorted
        self.worth = 0.0
        self.used = 0
        self.serial = 0  # of its valid entry in the eviction heap
        self.dead = False


class Match(NamedTuple):
    """What the tree holds of a prompt: whole pages, then num_partial tokens of one more."""

    nodes: list[Node]
    partial: Node | None = None
    num_partial: int = 0


class PrefixCache:
    """Which page holds which prefix. It keeps one hold on each of its pages (PageAllocator.keep).

    Args:
        pages: the pool.
        page_size: tokens per page.
        price: price(start, stop) of computing tokens [start, stop) again.
    """

    def __init__(self, pages: PageAllocator, page_size: int, price: Callable[[int, int], float]) -> None:
        self.num_nodes = 0
        self.num_evicted = 0
        self._pages = pages
        self._page_size = page_size
        self._price = price
        self._roots: dict[str, Node] = {}
        self._heap: list[tuple[float, int, int, Node]] = []  # worth, used, serial
        self._floor = 0.0
        self._uses = 0
        self._serial = 0

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> Match:
        """The longest prefix of tokens[:limit] that is computed. O(limit), and a binary search among siblings."""
        node = self._roots.get(salt)
        nodes: list[Node] = []
        if node is None:
            return Match(nodes)
        size = self._page_size
        start = 0
        while start + size <= limit:
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            nodes.append(child)
            node = child
            start += size
        key = tuple(tokens[start : min(start + size, limit)])
        place = bisect_left(node.keys, key)
        best, best_length = None, 0
        for sibling in node.keys[max(place - 1, 0) : place + 1]:
            length = _common_length(sibling, key)
            if length > best_length:
                best, best_length = node.children[sibling], length
        return Match(nodes, best, best_length)

    def extend(self, node: Node | None, salt: str, key: Key, page: int) -> Node | None:
        """The child of node (None: of the root) that holds key; a new one, on page, where there is none.

        None where node was forgotten, or where key fills its page in part and a sibling begins with it.
        """
        if node is None:
            node = self._roots.get(salt)
            if node is None:
                node = self._roots[salt] = Node(None, (), -1, salt)
        elif node.dead:
            return None
        child = node.children.get(key)
        if child is not None:
            return child
        if len(key) < self._page_size and self._begins_another(node, key):
            return None
        child = Node(node, key, page, salt)
        self._pages.keep(page)
        self.num_nodes += 1
        self._attach(child)
        return child

    def lengthen(self, node: Node, key: Key) -> Node | None:
        """A partly filled leaf now holds key, which begins with what it held. As extend: another node may hold it."""
        parent = node.parent
        if node.dead or parent is None:
            return None
        other = parent.children.get(key)
        if other is node:
            return node
        self._unlink(node)
        if other is None and not (len(key) < self._page_size and self._begins_another(parent, key)):
            node.key = key
            self._attach(node)
            return node
        self._bury(node)
        self._prune(parent)
        return other

    def touch(self, node: Node) -> None:
        """node and all above it were used just now; to be called once its users' holds are as they will stay."""
        self._uses += 1
        size = self._page_size
        here: Node | None = node
        while here is not None and here.parent is not None:
            start = (here.depth - 1) * size
            here.worth = self._floor + self._price(start, start + len(here.key))
            here.used = self._uses
            here = here.parent
        self._offer(node)

    def evict(self, count: int) -> int:
        """Free up to count pages that nobody else holds; how many were freed. O(log nodes) each."""
        freed = 0
        while freed < count and self._heap:
            worth, _, serial, node = heapq.heappop(self._heap)
            if node.serial != serial or node.dead or node.children or not self._pages.is_idle(node.page):
                continue
            self._floor = max(self._floor, worth)
            self._unlink(node)
            self._bury(node)
            self._prune(node.parent)
            freed += 1
        self.num_evicted += freed
        return freed

    def forget(self, node: Node) -> None:
        """Drop node and all below it, whoever uses their pages: what they hold is not to be trusted."""
        if node.dead:
            return
        self._unlink(node)
        stack = [node]
        while stack:
            below = stack.pop()
            stack.extend(below.children.values())
            self._bury(below)
        self._prune(node.parent)

    def forget_pages_from(self, first_page: int) -> None:
        """Forget every node on a page of at least first_page, as the pool loses those. O(nodes)."""
        for node in [node for node in self.nodes() if node.page >= first_page]:
            self.forget(node)

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def _begins_another(self, parent: Node, key: Key) -> bool:
        place = bisect_left(parent.keys, key)
        return place < len(parent.keys) and parent.keys[place][: len(key)] == key

    def _attach(self, node: Node) -> None:
        """Into its parent's children. An idle sibling whose tokens node repeats from the start has served its time."""
        parent = node.parent
        assert parent is not None
        place = bisect_left(parent.keys, node.key)
        if place:
            before = parent.children[parent.keys[place - 1]]
            if node.key[: len(before.key)] == before.key and self._pages.is_idle(before.page):
                del parent.keys[place - 1], parent.children[before.key]
                self._bury(before)
                place -= 1
        parent.keys.insert(place, node.key)
        parent.children[node.key] = node

    def _unlink(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        del parent.keys[bisect_left(parent.keys, node.key)]

    def _bury(self, node: Node) -> None:
        node.dead = True
        self.num_nodes -= 1
        self._pages.drop(node.page)

    def _prune(self, parent: Node | None) -> None:
        """A child of parent is gone: an empty root goes too, and a new leaf may be evicted."""
        assert parent is not None
        if parent.parent is not None:
            self._offer(parent)
        elif not parent.keys:
            del self._roots[parent.salt]

    def _offer(self, node: Node) -> None:
        """To eviction, if it is an idle leaf."""
        if node.parent is None or node.dead or node.children or not self._pages.is_idle(node.page):
            return
        self._serial += 1
        node.serial = self._serial
        heapq.heappush(self._heap, (node.worth, node.used, node.serial, node))
        if len(self._heap) > 64 + 2 * self.num_nodes:
            self._heap = [entry for entry in self._heap if entry[3].serial == entry[2] and not entry[3].dead]
            heapq.heapify(self._heap)


def _common_length(a: Key, b: Key) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
