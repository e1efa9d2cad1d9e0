"""Matches, when they are decided and what is held back, against a naive matcher over all cuts."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from airi._core import guard
from tests.guard.naive import NaivePattern, Span, continuations, decided_and_open
from tests.guard.strategies import regexes, short_regexes, texts


def automaton(*regexes: str) -> guard.Automaton:
    return guard.Automaton([guard.Pattern(r, name=f"p{i}") for i, r in enumerate(regexes)])


def try_automaton(*regexes: str) -> guard.Automaton:
    """Discards the example where a pattern matches nothing, or the empty text."""
    try:
        return automaton(*regexes)
    except ValueError as error:
        assume("matches the empty text" not in str(error) and "matches no text" not in str(error))
        raise


def in_bytes(text: str, spans: list[Span]) -> list[Span]:
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


def of_pattern(matches: list[tuple[int, int, int]], pattern: int) -> list[Span]:
    return [(start, end) for p, start, end in matches if p == pattern]


@settings(max_examples=400)
@given(st.lists(regexes, min_size=1, max_size=3), texts)
@example(["a|ab1*b", "ab"], "abab")
@example(["(?:a|b)*1"], "aab1ab")
def test_matches_are_those_of_the_naive_matcher(patterns: list[str], text: str) -> None:
    found = try_automaton(*patterns).scan(text.encode())
    for i, regex in enumerate(patterns):
        expected = NaivePattern(regex=regex).matches(text)
        assert of_pattern(found, i) == in_bytes(text, expected)


@settings(max_examples=200)
@given(st.lists(regexes, min_size=1, max_size=3), texts, st.data())
def test_the_same_is_found_whatever_the_cuts(patterns: list[str], text: str, data: st.DataObject) -> None:
    machine = try_automaton(*patterns)
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    scanner = guard.Scanner(machine)
    found = []
    for start, end in pairwise([0, *cuts, len(whole)]):
        found += scanner.feed(whole[start:end])
        scanner.check_invariants()
        held = scanner.open_start
        assert held is None or held <= scanner.position
        assert all(match[2] <= scanner.position for match in found)
    assert found + scanner.finish() == machine.scan(whole)
    assert scanner.open_start is None


# Beside the alphabet of the text, what some classes tell apart from it.
FOLLOWING = "ab12 -"


@settings(max_examples=150)
@given(st.lists(short_regexes, min_size=1, max_size=2), st.text("ab1 ", max_size=7))
@example(["ab|abab"], "ab")
@example(["a|a.*b"], "a1a")
@example([r"\ba+\b"], "aa")
@example(["a(?=b)", "1a"], "1a")
@example([r"b(?=[^a1])\d"], "b")
@example([r"a\bb|a", "ab*1"], "a")
def test_a_match_is_decided_and_a_start_is_open_exactly_when_some_text_says_so(
    patterns: list[str], text: str
) -> None:
    scanner = guard.Scanner(try_automaton(*patterns))
    matches = scanner.feed(text.encode())
    found = [of_pattern(matches, i) for i in range(len(patterns))], scanner.open_start

    def naive(longest: int) -> tuple[list[list[Span]], int | None]:
        each = [
            decided_and_open(NaivePattern(regex=regex), text, continuations(FOLLOWING, longest))
            for regex in patterns
        ]
        return [decided for decided, _ in each], min((o for _, o in each if o is not None), default=None)

    # Most patterns need three characters more at most; where that says something else, five have the last word.
    if found != naive(3):
        assert found == naive(5)


@settings(max_examples=60)
@given(
    st.sampled_from(
        [
            "a.*b",
            "a|a.*b",
            "a(?:.{3}|.*1)",
            "(?:ab*){2}1?",
            "a.{0,20}1|ab",
            "[ab]{3,9}(?!a)",
            "ab|b.*a1|aa.*1",
            r"\ba.*b\b",
        ]
    ),
    st.text("aaab1 ", min_size=25, max_size=50),
)
def test_threads_that_are_merged_are_not_missed(regex: str, text: str) -> None:
    assert of_pattern(automaton(regex).scan(text.encode()), 0) == NaivePattern(regex=regex).matches(text)


def test_an_unbounded_pattern_does_not_pile_up_threads() -> None:
    scanner = guard.Scanner(automaton("a.*b", r"\d.*x", "[a-z]+@"))
    for _ in range(1000):
        scanner.feed(b"aaaa 1111 ")
    assert scanner.num_threads < 64
    assert scanner.open_start == 0
    assert scanner.feed(b"b\n") == [(0, 0, 10_001)]


def test_looks_that_let_everything_follow_decide_at_once() -> None:
    scanner = guard.Scanner(automaton(r"ab(?:\b|\B)"))
    assert scanner.feed(b"ab") == [(0, 0, 2)]
    assert scanner.open_start is None


def test_a_pattern_that_does_not_hold_is_reported_and_not_waited_for() -> None:
    patterns = [guard.Pattern("abc", name="audited", holds=False), guard.Pattern("bd", name="held")]
    scanner = guard.Scanner(guard.Automaton(patterns))
    assert scanner.feed(b"ab") == []
    assert scanner.open_start == 1
    assert scanner.feed(b"c") == [(0, 0, 3)]
    assert scanner.open_start is None


def test_a_text_that_has_ended_takes_nothing_more_until_reset() -> None:
    scanner = guard.Scanner(automaton(r"a\b"))
    assert scanner.feed(b"a") == []
    assert scanner.finish() == [(0, 0, 1)]
    with pytest.raises(ValueError, match="the text has ended"):
        scanner.feed(b"a")
    with pytest.raises(ValueError, match="the text has ended"):
        scanner.finish()
    scanner.reset()
    assert scanner.position == 0
    assert scanner.feed(b"a ") == [(0, 0, 1)]


def test_literals_are_bytes_and_know_case_and_words() -> None:
    patterns = [
        guard.Pattern(b"\xff\x00", name="bytes", literal=True),
        guard.Pattern("a.b", name="dot", literal=True, ignore_case=True),
        guard.Pattern("cat", name="word", literal=True, word_boundary=True),
    ]
    found = guard.Automaton(patterns).scan(b"\xff\x00 A.B axb concat cat's _cat CAT cat")
    assert found == [(0, 0, 2), (1, 3, 6), (2, 18, 21), (2, 33, 36)]


def test_a_scan_of_many_bytes_lets_other_threads_run() -> None:
    machine = automaton("(?:a|b)*1x")
    ticks = 0
    done = threading.Event()

    def work() -> None:
        machine.scan(b"ab" * 2_000_000)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks += 1
    thread.join()
    assert ticks > 1000
