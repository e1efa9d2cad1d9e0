"""What two readings of an answer say of each other."""

from __future__ import annotations

import math

import pytest

from airi.gateway.comparing import LEAST_LOGPROB, Reading, Score, Spelling, by_text, by_token


def reading(tokens: list[int], logprobs: list[float], tops: list[int]) -> Reading:
    return Reading(tokens=tokens, logprobs=logprobs, tops=tops)


def test_the_same_readings_differ_by_nothing() -> None:
    one = reading([4, 5, 6], [-0.1, -3.0, -0.7], [4, 9, 6])
    assert by_token(one, one) == Score(0.0, 3, 3, 3, 3)
    spelling = Spelling({4: b"a", 5: b"bc", 6: b"d", 9: b"x"}, ())
    assert by_text(one, one, (spelling, spelling)) == Score(0.0, 3, 3, 3, 3)


def test_tokens_are_compared_one_by_one() -> None:
    stable = reading([4, 5, 6, 7], [-0.5, -0.5, -0.5, -0.5], [4, 5, 1, 7])
    candidate = reading([4, 5, 6, 7], [-0.5, -2.5, -0.5, -0.5], [4, 8, 1, 2])
    assert by_token(stable, candidate) == Score(2.0, 4, 2, 4, 1)


@pytest.mark.parametrize("impossible", [-math.inf, math.nan, -1e30])
def test_what_a_model_holds_for_impossible_counts_as_very_unlikely(impossible: float) -> None:
    stable = reading([4, 5], [-0.5, -0.5], [4, 5])
    found = by_token(stable, reading([4, 5], [-0.5, impossible], [4, 5]))
    assert found.nll_delta == -0.5 - LEAST_LOGPROB


def test_texts_are_compared_where_tokens_of_both_begin() -> None:
    mine = Spelling({1: b"Hello", 2: b" wor", 3: b"ld", 9: b"!"}, (0,))
    theirs = Spelling({1: b"He", 2: b"llo", 3: b" world", 4: b" war", 7: b"?"}, (8,))
    stable = reading([1, 2, 3], [-1.0, -1.0, -1.0], [1, 2, 3])
    # At " wor" both would go on alike, as one's token begins the other's; "ld" begins inside of a token.
    candidate = reading([1, 2, 3], [-1.0, -0.5, -2.5], [1, 2, 3])
    assert by_text(stable, candidate, (mine, theirs)) == Score(1.0, 3, 2, 2, 3)
    candidate = reading([1, 2, 3], [-1.0, -0.5, -2.5], [1, 2, 4])
    assert by_text(stable, candidate, (mine, theirs)) == Score(1.0, 3, 1, 2, 1)
    assert by_text(stable, candidate, None) == Score(1.0, 3, 0, 0, 3)


def test_ends_say_the_same_whatever_they_are_called() -> None:
    mine, theirs = Spelling({1: b"a", 0: b"<end>"}, (0,)), Spelling({1: b"a", 8: b"</s>"}, (8,))
    assert mine.agrees(0, theirs, 8)
    assert not mine.agrees(0, theirs, 1)
    assert not mine.agrees(1, theirs, 8)
    nothing = Spelling({1: b""}, ())
    assert not nothing.agrees(1, nothing, 1)
