"""What a client is shown is what forbidden texts were walked over, for every kind of tokenizer and however it ends."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from airi.engine.constraints.forbidden import ForbiddenWalk, Shown, Vocabulary
from airi.errors import ConfigError
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.policy.forbidden import ForbiddenPolicy
from airi.text import Tokenizer
from tests.guard.strategies import regexes

if TYPE_CHECKING:
    from tests.text.conftest import Pair

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
PATTERNS = st.one_of(
    regexes,
    st.sampled_from(
        [r"^\S", r"\bthe\b", "e", r" [a-m]", r"s.", "[^ ]\\Z", r"x(?!y)", "<", "\ufffd", r"\W\W", "é|—|你"]
    ),
)
PROMPTS = st.sampled_from([[], ["the "], ["é"], ["🙂"], ["<s>"], ["a", "—"]])
PADDING = 3
"""Ids of the logits beyond the tokenizer's."""


def policy_of(regex: str) -> ForbiddenPolicy:
    try:
        return ForbiddenPolicy(ForbiddenSet((ForbiddenPattern(name="p", regex=regex),)))
    except ConfigError:
        reject()


def prompt_ids(tokenizer: Tokenizer, chunks: list[str], cut: int) -> list[int]:
    """A prompt that may end within a character."""
    ids = [i for chunk in chunks for i in tokenizer.encode(chunk, add_special_tokens=False)]
    return ids[: len(ids) - cut] if cut < len(ids) else ids


def walk_over(
    vocabulary: Vocabulary, policy: ForbiddenPolicy, prompt: list[int], shown: Shown
) -> ForbiddenWalk:
    masks = vocabulary.masks(policy.automaton, shown)
    first = vocabulary.masks(policy.automaton, shown, first=True)
    return ForbiddenWalk(masks, first, vocabulary.detokenizer(prompt, shown), hidden_ids=())


def wander(walk: ForbiddenWalk, vocabulary: Vocabulary, seed: int, count: int) -> list[int]:
    """Tokens that the walk allows, short ones more often: they are what patterns are put together from."""
    rng = random.Random(seed)
    mask = np.zeros(-(-vocabulary.size // 32), np.uint32)
    pieces = vocabulary.tokenizer.pieces()
    assert pieces is not None
    tokens: list[int] = []
    for draw in range(count):
        assert walk.allow(mask, draw) is not None
        bits = np.unpackbits(mask.view(np.uint8), count=vocabulary.size, bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        if not allowed:
            break
        short = [i for i in allowed if len(pieces[i]) <= 2]
        token = rng.choice(short if short and rng.random() < 0.7 else allowed)
        assert walk.push(draw, token)
        tokens.append(token)
    return tokens


@shared
@given(
    regex=PATTERNS,
    chunks=PROMPTS,
    cut=st.integers(0, 2),
    seed=st.integers(0, 2**32),
    skip=st.booleans(),
    stop=st.sampled_from([(), ("a",), ("e", "the"), (" ",)]),
    include=st.booleans(),
)
def test_no_text_that_is_shown_has_a_match(
    pair: Pair, *, regex: str, chunks: list[str], cut: int, seed: int, skip: bool, stop: tuple[str, ...], include: bool
) -> None:  # fmt: skip
    tokenizer, policy = pair.ours, policy_of(regex)
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size + PADDING)
    prompt = prompt_ids(tokenizer, chunks, cut)
    shown = Shown(skip, frozenset(sorted(tokenizer.special_ids)[: seed % 2]))
    walk = walk_over(vocabulary, policy, prompt, shown)
    tokens = wander(walk, vocabulary, seed, 16)
    stream = tokenizer.stream(
        prompt,
        skip_special_tokens=skip,
        show=tuple(shown.show),
        stop=stop,
        include_stop=include,
        may_end=policy.may_end,
    )
    text, prefix = "", ""
    for token in tokens:
        text += stream.push([token])
        if not stop:
            prefix = tokenizer_text(tokenizer, prompt, tokens[: stream.num_tokens], shown, policy)
            assert not re.search(regex, prefix, re.ASCII)
    text += stream.finish()
    assert text == stream.text
    assert not re.search(regex, text, re.ASCII)
    assert policy.first_match(text) is None
    if not stream.is_cut:
        assert walk.state_after(len(tokens)) == policy.state_after(text)


def tokenizer_text(
    tokenizer: Tokenizer, prompt: list[int], tokens: list[int], shown: Shown, policy: ForbiddenPolicy
) -> str:
    """What a client is shown that gets no more tokens."""
    stream = tokenizer.stream(
        prompt,
        skip_special_tokens=shown.skip_special_tokens,
        show=tuple(shown.show),
        may_end=policy.may_end,
    )
    return stream.push(tokens) + stream.finish()


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused(pairs: dict[str, Pair]) -> None:
    with pytest.raises(ConfigError, match="looks at neighbours"):
        Vocabulary.load(pairs["wordpiece"].folder, 700)
    with pytest.raises(ConfigError, match="no tokenizer"):
        Vocabulary.load(Path("/nowhere"), 700)


def test_a_stop_string_cuts_where_the_text_may_end(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["byte-level"].ours
    policy = policy_of(r"\bthe\b")

    def cut(text: str, *stop: str, include: bool = False) -> tuple[str, bool]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream = tokenizer.stream(stop=stop, include_stop=include, may_end=policy.may_end)
        return stream.push(ids) + stream.finish(), stream.is_cut

    assert cut("other things", "r t") == ("othe", True)
    assert cut("see theory", "ory") == ("see theo", True), "no earlier than that"
    assert cut("see theory", "eory", include=True) == ("see theory", True)
    assert cut("see theory", "x") == ("see theory", False)


def test_bytes_that_make_no_character_are_left_out(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["byte-level"].ours
    first = next(i for i in range(700) if tokenizer.token_bytes(i) == b"\xc3")
    letter = tokenizer.encode("a", add_special_tokens=False)
    plain = tokenizer.stream()
    assert plain.push([*letter, first]) + plain.finish() == "a\ufffd"
    kept = tokenizer.stream(may_end=lambda _: True)
    assert kept.push([*letter, first]) + kept.finish() == "a"
    assert kept.is_cut
