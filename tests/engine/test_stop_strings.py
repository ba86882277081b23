# SPDX-License-Identifier: Apache-2.0
"""Stop strings against a plain-string oracle, wherever the pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st

from pagedserve.engine.stopping import StopMatcher
from tests.engine.engine_fakes import stopped


def run(pieces: list[str], stops: list[str], unarmed: int = 0) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(stops)
    given_out = []
    for i, piece in enumerate(pieces):
        safe, found = matcher.feed(piece, armed=i >= unarmed)
        given_out.append(safe)
        if found is not None:
            return "".join(given_out), found, given_out
    given_out.append(matcher.flush())
    return "".join(given_out), None, given_out


def may_become(text: str, stop: str) -> bool:
    return len(text) < len(stop) and stop.startswith(text)


few_letters = st.text(alphabet="ab", max_size=30)
pieces = st.lists(st.text(alphabet="ab", max_size=4), max_size=20)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)


@given(pieces, stop_lists)
def test_equals_plain_search_however_the_text_is_cut(cut, stops):
    text, found, _ = run(cut, stops)
    assert (text, found) == stopped("".join(cut), stops)


@given(pieces, stop_lists, st.integers(0, 20))
def test_unarmed_pieces_never_stop_but_are_remembered(cut, stops, unarmed):
    text, found, _ = run(cut, stops, unarmed)
    assert (text, found) == stopped("".join(cut), stops, armed_from=len("".join(cut[:unarmed])))


@given(few_letters, stop_lists)
def test_nothing_is_held_that_cannot_become_a_stop_string(text, stops):
    matcher = StopMatcher(stops)
    given_out = ""
    for end, character in enumerate(text, 1):
        safe, found = matcher.feed(character)
        given_out += safe
        if found is not None:
            return
        held = text[len(given_out) : end]
        longest = max(k for k in range(end + 1) if any(may_become(text[end - k : end], stop) for stop in stops))
        assert len(held) == longest


@given(st.text(max_size=20), st.text(min_size=1, max_size=3))
def test_any_alphabet(text, stop):
    assert run(list(text), [stop])[:2] == stopped(text, [stop])


def test_a_stop_string_over_three_pieces_is_cut_out():
    assert run(["Hello wo", "rl", "d and", " more"], ["world"]) == ("Hello ", "world", ["Hello ", "", ""])


def test_a_false_start_is_given_back():
    assert run(["ab", "ab", "x"], ["abc"])[2] == ["", "ab", "abx", ""]
