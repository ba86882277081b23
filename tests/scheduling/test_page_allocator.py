# SPDX-License-Identifier: Apache-2.0
"""PageAllocator: every hold is counted, and a miscount is named."""

from __future__ import annotations

import pytest
from scheduler_audit import audit_pages

from pagedserve.errors import InvalidInput
from pagedserve.scheduling.pages import PageAllocator


def test_takes_each_page_once_and_reuses_the_last_freed() -> None:
    pages = PageAllocator(4)
    assert [pages.take()[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InvalidInput, match="1 pages are wanted, 0 of 4 are free"):
        pages.take()
    pages.release(1)
    pages.release(2)
    assert pages.num_free == 2
    assert pages.take()[0] == 2


def test_a_shared_page_is_free_after_its_last_release() -> None:
    pages = PageAllocator(2)
    page = pages.take()[0]
    pages.share(page)
    pages.release(page)
    assert pages.num_free == 1
    pages.release(page)
    assert pages.num_free == 2


def test_double_free_is_named() -> None:
    pages = PageAllocator(2)
    page = pages.take()[0]
    pages.release(page)
    with pytest.raises(InvalidInput, match="page 0 was released twice"):
        pages.release(page)
    with pytest.raises(InvalidInput, match="page 0 is free"):
        pages.share(page)
    with pytest.raises(InvalidInput, match="page 0 is free"):
        pages.keep(page)
    with pytest.raises(InvalidInput, match="not in the prefix cache"):
        pages.drop(page)


def test_idle_pages_are_those_that_only_the_cache_holds() -> None:
    pages = PageAllocator(3)
    page = pages.take()[0]
    pages.keep(page)
    assert (pages.num_idle, pages.is_idle(page)) == (0, False)
    pages.release(page)
    assert (pages.num_idle, pages.num_free, pages.num_available) == (1, 2, 3)
    with pytest.raises(InvalidInput, match="released twice"):
        pages.release(page)
    with pytest.raises(InvalidInput, match="already"):
        pages.keep(page)
    pages.share(page)
    assert (pages.num_idle, pages.num_available) == (0, 2)
    pages.drop(page)
    assert (pages.num_idle, pages.num_available) == (0, 2)
    pages.release(page)
    assert pages.num_free == 3


def test_resize_keeps_what_is_held_and_refuses_to_cut_it_off() -> None:
    pages = PageAllocator(4)
    held = [pages.take()[0] for _ in range(3)]
    with pytest.raises(InvalidInput, match="cannot shrink to 2"):
        pages.resize(2)
    pages.release(held[2])
    pages.resize(2)
    assert (pages.num_pages, pages.num_free) == (2, 0)
    pages.resize(5)
    assert sorted(pages.take()[0] for _ in range(3)) == [2, 3, 4]
    audit_pages(pages, dict.fromkeys(range(5), 1), frozenset())


@pytest.mark.parametrize(
    ("holders", "kept", "message"),
    [
        ({}, set(), "page 0 is leaked: 1 holders counted, 0 found"),
        ({0: 2, 1: 2}, {1}, "page 0 is lost: 1 holders counted, 2 found"),
        ({0: 1, 1: 2}, set(), "disagree on page 1"),
    ],
)
def test_audit_names_the_first_page_that_is_wrong(holders: dict[int, int], kept: set[int], message: str) -> None:
    pages = PageAllocator(3)
    pages.take()
    pages.keep(pages.take()[0])
    audit_pages(pages, {0: 1, 1: 2}, {1})
    with pytest.raises(AssertionError, match=message):
        audit_pages(pages, holders, kept)


def test_audit_sees_a_page_that_is_free_twice() -> None:
    pages = PageAllocator(2)
    pages._free.append(0)
    with pytest.raises(AssertionError):
        audit_pages(pages, {}, frozenset())
