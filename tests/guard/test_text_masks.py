"""Masks of texts: whatever is allowed is UTF-8, and has no match wherever it is cut off behind a token."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from airi._core import guard
from tests.guard.strategies import regexes

E, EURO, SMILE = "é".encode(), "€".encode(), "🙂".encode()
VOCABULARY = [
    *(b"", b"a", b"b", b"1", b" ", b"ab", b"ba", b"a1", b" a", b"1b", E, b"a" + E, E + b"1"),
    *(E[:1], E[1:], b"a" + E[:1], E[1:] + b"b", b" " + EURO[:2], EURO[:1], EURO[1:], EURO[2:]),
    *(SMILE[:1], SMILE[1:], SMILE[:3], SMILE[3:], SMILE, b"\xff", b"\xe0\x80", b"\xed\xa0", b"a\x80"),
]
TOKENS = st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=7)


def text_masks(*texts: str) -> guard.TokenMasks:
    patterns = [guard.Pattern(text, name=text) for text in texts]
    return guard.TokenMasks(guard.Automaton(patterns), VOCABULARY, text=True)


def forbidden(masks: guard.TokenMasks, state: guard.MaskState) -> set[int]:
    words = np.zeros(masks.num_words, np.uint32)
    masks.fill(state, words)
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def whole(data: bytes) -> str | None:
    """The characters of a text that may be cut within its last one; None for what is no UTF-8."""
    for cut in range(min(4, len(data) + 1)):
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        rest = data[len(data) - cut :]
        can_follow = (rest + more for more in (b"", b"\x80", b"\xbf", b"\x80" * 2, b"\xbf" * 2, b"\x90\x80\x80",
                                               b"\x80" * 3, b"\xa0\x80", b"\xbf" * 3))  # fmt: skip
        if any(_is_utf8(each) for each in can_follow):
            return text
        return None
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def may_have_match(regex: str, before: bytes, token: bytes) -> bool:
    """Whether a text that ends within the token, or goes on behind it, matches."""
    data = before + token
    cuts = [data[:end] for end in range(len(before), len(data) + 1)]
    cuts += [data + more for more in (b"\x80", b"\xa0", b"\x80" * 2, b"\xa0\x80", b"\x98\x80\x80")]
    return any(re.search(regex, text, re.ASCII) for text in map(_text, cuts) if text is not None)


def _text(data: bytes) -> str | None:
    return data.decode() if _is_utf8(data) else None


@settings(max_examples=150)
@given(regexes, TOKENS)
def test_every_text_that_is_allowed_can_be_cut_behind_any_token(regex: str, output: list[int]) -> None:
    try:
        masks = text_masks(regex)
    except ValueError:
        reject()
    state, data = masks.after(b""), b""
    for token in output:
        banned = forbidden(masks, state)
        for other in range(len(VOCABULARY)):
            assert (masks.advance(state, other) is None) == (other in banned)
        if token in banned:
            after = data + VOCABULARY[token]
            assert whole(after) is None or may_have_match(regex, data, VOCABULARY[token])
            continue
        advanced = masks.advance(state, token)
        assert advanced is not None
        state, data = advanced, data + VOCABULARY[token]
        assert not masks.ends_match(state)
        assert state == masks.after(data) == masks.restore(bytes(state))
        text = whole(data)
        assert text is not None
        assert not re.search(regex, text, re.ASCII)


def test_a_word_may_not_be_left_standing_but_a_longer_one_may_be_written() -> None:
    masks = text_masks(r"\bab\b")
    assert VOCABULARY.index(b"ab") in forbidden(masks, masks.after(b""))
    assert VOCABULARY.index(b"ab") not in forbidden(masks, masks.after(b"b"))
    a_then = masks.after(b"a")
    assert VOCABULARY.index(b"b") in forbidden(masks, a_then)
    assert VOCABULARY.index(b"ba") not in forbidden(masks, a_then)


@pytest.mark.parametrize(
    "start", [b"", E[:1], EURO[:1], EURO[:2], SMILE[:1], SMILE[:3], b"\xe0", b"\xed", b"\xf0"]
)
def test_what_is_no_utf_8_is_never_allowed(start: bytes) -> None:
    masks = text_masks("never")
    wanted = {i for i, token in enumerate(VOCABULARY) if token and whole(start + token) is None}
    assert forbidden(masks, masks.after(start)) == wanted


def test_states_within_a_character_are_states_of_texts_alone() -> None:
    masks = text_masks("ab")
    within = bytes(masks.after(EURO[:1]))
    assert masks.restore(within) == masks.after(EURO[:1])
    plain = guard.TokenMasks(guard.Automaton([guard.Pattern("ab", name="ab")]), VOCABULARY)
    with pytest.raises(ValueError, match="no state"):
        plain.restore(within)
