# SPDX-License-Identifier: Apache-2.0
"""PrefixCache against a list of what was put in, and its order of eviction."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_audit import audit_pages

from pagedserve.scheduling.pages import PageAllocator
from pagedserve.scheduling.prefix import Node, PrefixCache

SIZE = 4


def key(*tokens: int) -> bytes:
    return array("Q", tokens).tobytes()


class Filled:
    """A cache, and a way to put whole prompts in as a sequence would."""

    def __init__(self, num_pages: int = 400, price=lambda start, stop: float(stop - start)) -> None:
        self.pages = PageAllocator(num_pages)
        self.cache = PrefixCache(self.pages, SIZE, price)

    def put(self, tokens: list[int], salt: str = "", release: bool = True) -> list[Node]:
        node, nodes, held = None, [], []
        for start in range(0, len(tokens), SIZE):
            page = self.pages.take()[0]
            held.append(page)
            node = self.cache.extend(node, salt, key(*tokens[start : start + SIZE]), page)
            nodes.append(node)
            if node.page != page:
                self.pages.share(node.page)
                self.pages.release(page)
                held[-1] = node.page
        if release:
            for page in held:
                self.pages.release(page)
            self.cache.touch(nodes[-1])
        return nodes

    def found(self, tokens: list[int], salt: str = "") -> int:
        nodes, _, partial = self.cache.match(salt, array("Q", tokens), len(tokens))
        return len(nodes) * SIZE + partial

    def audit(self) -> None:
        kept = [node.page for node in self.cache.nodes()]
        assert len(set(kept)) == len(kept)
        audit_pages(self.pages, dict.fromkeys(kept, 1), set(kept))


def test_matches_whole_pages_then_the_tokens_of_one_more() -> None:
    filled = Filled()
    nodes = filled.put(list(range(10)))
    whole, partial, num_partial = filled.cache.match("", array("Q", [0, 1, 2, 3, 4, 5, 6, 99, 8]), 9)
    assert (whole, partial, num_partial) == (nodes[:1], nodes[1], 3)
    assert filled.found(list(range(20))) == 10
    assert filled.found([7, 8]) == 0


def test_never_matches_beyond_the_limit() -> None:
    filled = Filled()
    filled.put(list(range(8)))
    whole, _, num_partial = filled.cache.match("", array("Q", range(8)), 7)
    assert (len(whole), num_partial) == (1, 3)
    assert filled.cache.match("", array("Q", range(8)), 4)[1:] == (None, 0)


def test_salts_do_not_see_each_other() -> None:
    filled = Filled()
    filled.put([1, 2, 3, 4], salt="a")
    assert filled.found([1, 2, 3, 4], salt="b") == 0
    assert filled.found([1, 2, 3, 4]) == 0
    assert filled.found([1, 2, 3, 4], salt="a") == 4


def test_the_longest_common_prefix_among_many_siblings() -> None:
    filled = Filled()
    for last in range(0, 200, 2):
        filled.put([5, 6, last, 0])
    assert filled.found([5, 6, 100, 9]) == 3
    assert filled.found([5, 6, 101, 0]) == 2
    assert filled.found([5, 7, 100, 0]) == 1


def test_a_partly_filled_leaf_is_lengthened_in_place() -> None:
    filled = Filled()
    [leaf] = filled.put([1, 2], release=False)
    assert filled.cache.lengthen(leaf, key(1, 2, 3, 4)) is leaf
    assert filled.found([1, 2, 3, 4]) == 4


def test_lengthening_to_what_a_sibling_holds_gives_the_sibling() -> None:
    filled = Filled()
    [leaf] = filled.put([1, 2], release=False)
    [sibling] = filled.put([1, 2, 3, 4])
    own = leaf.page
    assert filled.cache.lengthen(leaf, key(1, 2, 3)) is sibling
    filled.pages.release(own)
    filled.audit()


def test_an_idle_partial_page_goes_when_a_longer_one_comes() -> None:
    filled = Filled()
    filled.put([1, 2])
    filled.put([1, 2, 3])
    filled.put([1, 2, 3, 4])
    assert [node.key for node in filled.cache.nodes()] == [key(1, 2, 3, 4)]
    filled.audit()


def test_evicts_leaves_in_order_of_last_use() -> None:
    filled = Filled()
    for first in (1, 2, 3):
        filled.put([first] * (2 * SIZE))
    filled.cache.touch(filled.cache.match("", array("Q", [1] * 8), 8)[0][-1])
    assert filled.cache.evict(2) == 2
    assert [filled.found([first] * 8) for first in (1, 2, 3)] == [8, 0, 8]
    assert filled.cache.evict(1) == 1
    assert [filled.found([first] * 8) for first in (1, 2, 3)] == [8, 0, 4]
    assert filled.cache.evict(1) == 1
    assert filled.cache.evict(99) == 2
    assert filled.cache.evict(1) == 0
    filled.audit()
    assert filled.pages.num_free == filled.pages.num_pages


def test_what_is_dear_to_compute_outlives_what_is_cheap_for_a_while() -> None:
    filled = Filled(price=lambda start, stop: 100.0 if stop == SIZE else 1.0)
    filled.put([1, 1, 1, 1])
    filled.put([2, 2])
    filled.put([3, 3])
    assert filled.cache.evict(2) == 2
    assert (filled.found([1, 1, 1, 1]), filled.found([2, 2]), filled.found([3, 3])) == (4, 0, 0)
    for first in range(10, 120):
        filled.put([first, first])
        filled.cache.evict(1)
    assert filled.found([1, 1, 1, 1]) == 0, "a dear page must age, too"


def test_pages_in_use_are_not_evicted() -> None:
    filled = Filled()
    filled.put([1] * 8, release=False)
    assert filled.cache.evict(1) == 0


def test_forgotten_nodes_take_no_children_and_no_length() -> None:
    filled = Filled()
    first, second = filled.put([1] * 6, release=False)
    filled.cache.forget(first)
    assert filled.found([1] * 6) == 0
    assert filled.cache.extend(first, "", key(2, 2, 2, 2), filled.pages.take()[0]) is None
    assert filled.cache.lengthen(second, key(1, 1, 1)) is None
    filled.cache.forget(first)
    assert not filled.cache._roots


def test_the_heap_of_candidates_does_not_grow_with_use() -> None:
    filled = Filled()
    [node] = filled.put([1, 2, 3, 4])
    for _ in range(1000):
        filled.cache.touch(node)
    assert len(filled.cache._heap) < 100


prompts = st.lists(st.sampled_from([0, 1, 256, 1 << 40]), min_size=1, max_size=14)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(prompts, st.sampled_from(["", "x"])), max_size=12), prompts, st.integers(0, 6))
def test_finds_what_a_list_of_all_prompts_finds(put: list[tuple[list[int], str]], query: list[int], count: int) -> None:
    filled = Filled()
    for tokens, salt in put:
        filled.put(tokens, salt)
    expected = max((common(tokens, query) for tokens, salt in put if salt == ""), default=0)
    assert filled.found(query) == expected
    filled.audit()
    num_idle = filled.pages.num_idle
    assert filled.cache.evict(count) == min(count, num_idle)
    assert filled.found(query) <= expected
    filled.audit()
    filled.cache.evict(num_idle)
    assert filled.pages.num_free == filled.pages.num_pages
    assert not filled.cache._roots


def common(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length
