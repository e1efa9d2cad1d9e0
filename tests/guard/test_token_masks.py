"""Masks against a brute force over a small vocabulary, and over the tokenizer of the built-in model."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import airi
from airi._core import guard
from airi.text import Tokenizer
from tests.guard.naive import NaivePattern, continuations
from tests.guard.strategies import short_regexes

VOCABULARY = [
    "",
    "a",
    "b",
    "1",
    " ",
    "ab",
    "ba",
    "aa",
    "1a",
    "b1",
    " a",
    "ab1",
    "a b",
    "aab",
    "bb",
    "a ",
    "2",
    "-",
]
FOLLOWING = list(continuations("ab12 -", 3))


def masks_of(*texts: str, tokens: list[str] | None = None) -> guard.TokenMasks:
    patterns = [guard.Pattern(text, name=text) for text in texts]
    vocabulary = VOCABULARY if tokens is None else tokens
    return guard.TokenMasks(guard.Automaton(patterns), [token.encode() for token in vocabulary])


def forbidden(masks: guard.TokenMasks, state: guard.MaskState) -> set[int]:
    words = np.full(masks.num_words, 0xFFFFFFFF, np.uint32)
    count = masks.fill(state, words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    found = set(np.flatnonzero(bits).tolist())
    assert len(found) == count
    return found


def has_match(naive: NaivePattern, text: str) -> bool:
    """Whether a match has ended within `text`, whatever follows."""
    return all(
        any(
            naive.is_candidate(text + more, start, end)
            for start in range(len(text))
            for end in range(start + 1, len(text) + 1)
        )
        for more in FOLLOWING
    )


@settings(max_examples=80)
@given(short_regexes, st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=4))
def test_a_token_is_forbidden_exactly_where_it_completes_a_match(regex: str, output: list[int]) -> None:
    naive = NaivePattern(regex=regex)
    try:
        masks = masks_of(regex)
    except ValueError:
        reject()
    state = masks.after(b"")
    text = ""
    for token in output:
        advanced = masks.advance(state, token)
        assert (token in forbidden(masks, state)) == (advanced is None)
        if advanced is None:
            return
        state, text = advanced, text + VOCABULARY[token]
    assert state == masks.after(text.encode())
    wanted = {i for i, token in enumerate(VOCABULARY) if token and has_match(naive, text + token)}
    assert forbidden(masks, state) == wanted
    ends = any(naive.is_candidate(text, start, len(text)) for start in range(len(text)))
    assert masks.ends_match(state) == ends


def test_a_token_without_bytes_is_never_forbidden_and_changes_nothing() -> None:
    masks = masks_of("[ab1 2-]")
    state = masks.after(b"x")
    assert forbidden(masks, state) == set(range(1, len(VOCABULARY)))
    assert masks.advance(state, 0) == state


def test_a_match_that_begins_before_the_output_may_not_be_completed_within_it() -> None:
    masks = masks_of("ab1")
    assert forbidden(masks, masks.after(b"ab1 a")) == {
        i for i, t in enumerate(VOCABULARY) if t.startswith("b1")
    } | {11}


def test_states_come_back_from_their_bytes() -> None:
    masks = masks_of(r"\ba.*b1", "aab", "(?<=1)a")
    for text in (b"", b"a", b"a a", b"1", b"aaaa2"):
        state = masks.after(text)
        again = masks.restore(bytes(state))
        assert again == state
        assert hash(again) == hash(state)
        assert forbidden(masks, again) == forbidden(masks, state)


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 4, b"\0" * 12, bytes(4) + b"\0\0\0\0\xff\0\0\0"])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no state"):
        masks_of("ab").restore(data)


def test_wrong_arguments_are_refused() -> None:
    masks = masks_of("ab")
    state = masks.after(b"")
    with pytest.raises(ValueError, match="token 18 is outside the vocabulary of 18"):
        masks.advance(state, len(VOCABULARY))
    with pytest.raises(ValueError, match="takes 1 words, got 2"):
        masks.fill(state, np.zeros(2, np.uint32))
    with pytest.raises(TypeError, match="out must be"):
        masks.fill(state, np.zeros(1, np.int64))  # type: ignore[arg-type,unused-ignore]
    card = guard.Pattern(r"\d{12}", name="card", validator=guard.Validator.LUHN)
    with pytest.raises(ValueError, match="pattern 'card' has a validator"):
        guard.TokenMasks(guard.Automaton([card]), [b"a"])


def test_a_cache_that_holds_nothing_gives_the_same_masks() -> None:
    machine = guard.Automaton([guard.Pattern("a.{0,9}b", name="p")])
    tokens = [token.encode() for token in VOCABULARY]
    small = guard.TokenMasks(machine, tokens, cache_bytes=0)
    large = guard.TokenMasks(machine, tokens)
    for text in (b"a", b"aa", b"a1a1a", b"1"):
        assert forbidden(small, small.after(text)) == forbidden(large, large.after(text))
    assert small.num_cached <= 1 < large.num_cached


@lru_cache(maxsize=1)
def built_in_tokens() -> list[bytes]:
    tokenizer = Tokenizer.load(Path(airi.__file__).parent / "builtin" / "airi-demo")
    special = tokenizer.special_ids
    return [b"" if i in special else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]


FORBIDDEN = [
    r"\bsecret\w*",
    "(?i:forbid(?:den)?)",
    r"\d{3}-\d{2}-\d{4}",
    r"[a-z]+@[a-z]+\.com",
    "é+x",
    r"the\b",
]


def adversary(
    masks: guard.TokenMasks,
    tokens: list[bytes],
    rng: random.Random,
    length: int,
    words: npt.NDArray[np.uint32],
) -> bytes:
    """An output that prefers tokens from the patterns' own texts, of those that are allowed."""
    wishes = [
        b"sec",
        b"secret",
        b"for",
        b"forbid",
        b"the",
        b"th",
        b" the",
        b"12",
        b"3-",
        b"45",
        b"@",
        b"a",
        b".com",
        b"com",
    ]
    liked = [
        i
        for i, token in enumerate(tokens)
        if token in wishes or (token and token in b"secretforbidden123-45-6789")
    ]
    state = masks.after(b"")
    output = b""
    for _ in range(length):
        masks.fill(state, words)
        choice = rng.choice(liked) if rng.random() < 0.9 else rng.randrange(len(tokens))
        if (int(words[choice // 32]) >> (choice % 32)) & 1:
            continue
        advanced = masks.advance(state, choice)
        assert advanced is not None
        state = advanced
        output += tokens[choice]
    while masks.ends_match(state):
        advanced = masks.advance(state, tokens.index(b"a"))
        assert advanced is not None
        state = advanced
        output += b"a"
    return output


def check_adversary(generations: int, length: int) -> None:
    tokens = built_in_tokens()
    machine = guard.Automaton([guard.Pattern(text, name=text) for text in FORBIDDEN])
    masks = guard.TokenMasks(machine, tokens)
    words = np.zeros(masks.num_words, np.uint32)
    matcher = re.compile("|".join(f"(?:{text})" for text in FORBIDDEN).encode(), re.ASCII)
    rng = random.Random(7)
    for _ in range(generations):
        output = adversary(masks, tokens, rng, length, words)
        assert not matcher.search(output)


def test_an_adversary_completes_no_match_with_the_built_in_tokenizer() -> None:
    check_adversary(200, 40)


@pytest.mark.slow  # 30 s
def test_an_adversary_completes_no_match_in_ten_thousand_generations() -> None:
    check_adversary(10_000, 40)


def test_masks_of_the_built_in_tokenizer_are_those_of_single_steps() -> None:
    tokens = built_in_tokens()
    machine = guard.Automaton([guard.Pattern(text, name=text) for text in FORBIDDEN])
    masks = guard.TokenMasks(machine, tokens)
    for text in (
        b"",
        b" a secre",
        b"12",
        b"123-4",
        b"mail bob@exa",
        b"the",
        b"th",
        "éé".encode(),
        b"\xc3",
        b"x",
    ):
        state = masks.after(text)
        single = {i for i in range(len(tokens)) if masks.advance(state, i) is None}
        assert forbidden(masks, state) == single
