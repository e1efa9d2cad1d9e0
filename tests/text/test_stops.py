"""Stop strings: exact wherever the text is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.text import StopChecker

TEXT = st.text("ab<", max_size=24)
STOPS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4)


def first_match(text: str, stops: Sequence[str], after: int = 0) -> tuple[int, int] | None:
    """(start, end) of the stop string that ends first after `after`, the longest of those: the definition."""
    for end in range(after + 1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return min(starts), end
    return None


def cut(text: str, borders: Sequence[int]) -> list[str]:
    """`text` in pieces, cut at `borders` (taken modulo its length)."""
    marks = sorted({0, len(text), *(b % (len(text) + 1) for b in borders)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@given(text=TEXT, stops=STOPS, borders=st.lists(st.integers(0, 30), max_size=12))
def test_the_first_stop_string_is_found_however_the_text_is_cut(
    text: str, stops: list[str], borders: list[int]
) -> None:
    checker = StopChecker(stops)
    got = ""
    expected = first_match(text, stops)
    for piece in cut(text, borders):
        ready, match = checker.push(piece)
        if match is not None:
            assert expected is not None
            assert got + ready[: match.start] == text[: expected[0]]
            assert match.stop == text[slice(*expected)]
            return
        got += ready
    assert expected is None
    assert got + checker.finish() == text


@given(text=TEXT, stops=STOPS, borders=st.lists(st.integers(0, 30), max_size=12))
def test_only_text_that_may_begin_a_stop_string_is_held_back(
    text: str, stops: list[str], borders: list[int]
) -> None:
    checker = StopChecker(stops)
    given_out = seen = ""
    for piece in cut(text, borders):
        ready, match = checker.push(piece)
        if match is not None:
            return
        given_out, seen = given_out + ready, seen + piece
        held = [n for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])]
        assert seen == given_out + checker.held
        assert len(checker.held) == max(held, default=0)


@given(text=TEXT, stops=STOPS, free=st.integers(0, 24))
def test_a_match_that_ends_in_unchecked_text_does_not_count(text: str, stops: list[str], free: int) -> None:
    checker = StopChecker(stops)
    head, _ = checker.push(text[:free], match=False)
    ready, match = checker.push(text[free:])
    expected = first_match(text, stops, after=min(free, len(text)))
    assert (match is None) == (expected is None)
    if match is not None and expected is not None:
        assert head + ready[: match.start] == text[: expected[0]]


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (["b", "ab"], "xab", "x"),  # both end at the same character: the longer one
        (["abcd", "c"], "xabcd", "xab"),  # "c" is complete first
        (["aab"], "aaaab", "aa"),
    ],
)
def test_which_of_several_matches_wins(stops: list[str], text: str, shown: str) -> None:
    ready, match = StopChecker(stops).push(text)
    assert match is not None
    assert ready[: match.start] == shown
