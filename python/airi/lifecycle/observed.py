"""What is seen of a release, as counts: everything that gates judge by, and nothing that anybody has said.

Counts only ever grow, so that those of several gateways are added, whenever each of them was told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

__all__ = ["NEVER", "Histogram", "Paired", "Seen", "merged"]

_PER_OCTAVE = 16
NEVER = 1 << 20
"""Tokens, more than any answer has: a short one that agrees throughout says nothing of an early divergence."""


class Histogram(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Counts of positive values in buckets that grow with them: a quantile is off by 1/45 of itself at most."""

    buckets: dict[int, int] = {}

    def add(self, value: float, times: int = 1) -> None:
        """One more value, or so many; what is not positive counts as the smallest there is."""
        at = math.floor(math.log2(max(value, 1e-6)) * _PER_OCTAVE)
        self.buckets[at] = self.buckets.get(at, 0) + times

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.buckets.values())

    def quantile(self, q: float) -> float:
        """What a share q of the values do not exceed, about; 0 without values."""
        return self.at_rank(math.ceil(q * self.count))

    def at_rank(self, rank: int) -> float:
        """The value of this rank, the smallest being 1, about; 0 without values."""
        left, value = max(1, rank), 0.0
        for at in sorted(self.buckets):
            value = 2.0 ** ((at + 0.5) / _PER_OCTAVE)
            left -= self.buckets[at]
            if left <= 0:
                break
        return value

    def merge(self, other: Histogram) -> None:
        """Adds what another one has counted."""
        for at, count in other.buckets.items():
            self.buckets[at] = self.buckets.get(at, 0) + count


class Paired(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A mean over tokens that come in answers, and how sure it is: tokens of one answer are not independent.

    A ratio estimator over answers (Cochran, Sampling Techniques, 6.3): values of each answer are summed, and the mean
    is the sum of sums over the sum of tokens.
    """

    answers: int = 0
    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0
    token_squares: float = 0.0
    products: float = 0.0

    def add(self, total: float, tokens: int) -> None:
        """An answer of so many tokens whose values add up to `total`."""
        self.answers += 1
        self.tokens += tokens
        self.total += total
        self.squares += total * total
        self.token_squares += float(tokens) * tokens
        self.products += total * tokens

    @property
    def mean(self) -> float:
        """Per token; 0 without tokens."""
        return self.total / self.tokens if self.tokens else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite for fewer than two answers."""
        if self.answers < 2 or not self.tokens:
            return math.inf
        mean = self.mean
        spread = self.squares - 2 * mean * self.products + mean * mean * self.token_squares
        return math.sqrt(max(spread, 0.0) * self.answers / (self.answers - 1)) / self.tokens

    def merge(self, other: Paired) -> None:
        """Adds what another one has counted."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Seen(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Of one release within one rollout."""

    requests: int = 0
    """That were answered, or failed for what the server is to blame for; none that its caller got wrong or gave up."""
    errors: int = 0
    """Of those, the latter."""
    chosen: int = 0
    """Calls that had it as they, or the calls around them, asked for it: no fair sample, so nothing else has them."""
    finished: int = 0
    """Answers that ended by themselves or by their length."""
    cut: int = 0
    """Of those, by their length."""
    repeating: int = 0
    """Of those, that say the same again and again."""
    json_asked: int = 0
    """Answers that were to be JSON."""
    json_valid: int = 0
    schema_asked: int = 0
    """Answers that were to be JSON or calls of tools, by schemas, and were judged."""
    schema_valid: int = 0
    unjudged: int = 0
    """Answers of that kind that were not: too long, too many at once, or by a schema that nobody can judge by."""
    ttft_ms: Histogram = msgspec.field(default_factory=Histogram)
    itl_ms: Histogram = msgspec.field(default_factory=Histogram)
    nll_delta: Paired = msgspec.field(default_factory=Paired)
    """How much less likely than stable it finds each token that stable has served, in nats."""
    agreement: Paired = msgspec.field(default_factory=Paired)
    """1 for each of these tokens where its most likely one is stable's."""
    first_divergence: Histogram = msgspec.field(default_factory=Histogram)
    """Tokens of an answer up to the first where the most likely ones differ; NEVER where none does."""
    overlap: Paired = msgspec.field(default_factory=Paired)
    """1 for each row that a search with stable's vectors has found, where it is also found with the candidate's."""
    unscored: int = 0
    """Answers that the candidate cannot read, or not as they were served."""
    dropped: int = 0
    """Answers that were to be scored, and were not for want of time or of an engine."""

    def merge(self, other: Seen) -> None:
        """Adds what another gateway has seen."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, int):
                setattr(self, name, mine + theirs)
            else:
                mine.merge(theirs)


def merged(parts: Iterable[Seen]) -> Seen:
    """What all have seen together."""
    whole = Seen()
    for part in parts:
        whole.merge(part)
    return whole
