"""What two models say of one answer, compared: by tokens where both have the same, by text where they have not.

With different tokenizers each model reads the text in its own tokens. How likely each finds all of the text can be
compared as it is; what each would have said can be compared where a token of both begins at the same byte.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

__all__ = ["LEAST_LOGPROB", "Reading", "Score", "Spelling", "by_text", "by_token"]

LEAST_LOGPROB = -50.0
"""In nats. A token that a model holds for impossible counts as this: one of them must not outweigh all others."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says of the tokens of an answer, each with all before it read."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    """Of the tokens themselves."""
    tops: Sequence[int]
    """The most likely token in the place of each."""

    @property
    def nll(self) -> float:
        """How unlikely it finds the answer, in nats."""
        return -sum(each if each > LEAST_LOGPROB else LEAST_LOGPROB for each in self.logprobs)


class Score(NamedTuple):
    """How far a candidate's reading of an answer is from stable's."""

    nll_delta: float
    """How much less likely it finds the whole answer, in nats."""
    tokens: int
    """Of the answer, as stable made it."""
    agreed: int
    """Places where both would have said the same."""
    compared: int
    """Places where that can be told."""
    first_divergence: int
    """Tokens of stable's before the first place where they would not; all where there is none."""


class Spelling(NamedTuple):
    """How the tokens of a model are written."""

    pieces: Mapping[int, bytes]
    ends: Collection[int]
    """Tokens that end an answer, whatever they are called."""

    def agrees(self, token: int, other: Spelling, others: int) -> bool:
        """Whether two tokens say the same as far as both go: one may be longer than the other."""
        if token in self.ends or others in other.ends:
            return token in self.ends and others in other.ends
        mine, theirs = self.pieces[token], other.pieces[others]
        return bool(mine and theirs) and (mine.startswith(theirs) or theirs.startswith(mine))


def by_token(stable: Reading, candidate: Reading) -> Score:
    """Of the same tokens."""
    same = [one == other for one, other in zip(stable.tops, candidate.tops, strict=True)]
    count = len(same)
    nll_delta = candidate.nll - stable.nll
    return Score(nll_delta, count, sum(same), count, count if all(same) else same.index(False))


def by_text(stable: Reading, candidate: Reading, spellings: tuple[Spelling, Spelling] | None) -> Score:
    """Of the same text in other tokens; without the spellings of both nothing is said of agreement."""
    nll_delta, count = candidate.nll - stable.nll, len(stable.tokens)
    if spellings is None:
        return Score(nll_delta, count, 0, 0, count)
    mine, theirs = spellings
    places = dict(zip(_starts(theirs.pieces, candidate.tokens), candidate.tops, strict=False))
    agreed = compared = 0
    first = count
    for index, (place, top) in enumerate(zip(_starts(mine.pieces, stable.tokens), stable.tops, strict=False)):
        if place not in places:
            continue
        compared += 1
        if mine.agrees(top, theirs, places[place]):
            agreed += 1
        elif first == count:
            first = index
    return Score(nll_delta, count, agreed, compared, first)


def _starts(pieces: Mapping[int, bytes], tokens: Sequence[int]) -> list[int]:
    """The byte at which each token begins, and the one behind the last."""
    return list(accumulate((len(pieces[token]) for token in tokens), initial=0))
