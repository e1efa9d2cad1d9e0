"""Invented names and figures, each belonging to exactly one of two disjoint splits.

A value belongs to the held-out split when a checksum of its text says so; nothing is listed twice and no
list has to be kept in step: a name or a number that training may draw can never be drawn for evaluation.
"""

from __future__ import annotations

import enum
import random
import re
import zlib

_ONSETS = (
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "qu",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ia", "io", "y")
_CODAS = ("", "", "", "l", "n", "r", "s", "m", "nd", "rt", "x")
_PLACE_ENDS = ("ford", "hafen", "ton", "wick", "mouth", "berg", "stad", "field", "by", "dale")
_PRODUCT_WORDS = (
    "Silver", "Gold", "Classic", "Student", "Basic", "Premium", "Travel", "Family", "Junior", "Alder", "Maple",
    "Comfort", "Direct", "Plus", "Flex", "Smart", "Green", "Blue", "Ruby", "Pearl", "Harbour", "Meadow", "Summit",
    "River", "Start", "Active", "Global", "Royal", "Amber", "Cedar", "Falcon", "Comet", "Orchid", "Lantern", "Anchor",
)  # fmt: skip
_CURRENCIES = (
    "{} EUR",
    "{} EUR",
    "EUR {}",
    "{} euros",
    "{} euros",
    "€{}",
    "${}",
    "{} dollars",
    "£{}",
    "{} USD",
    "{} crowns",
)


_AVOIDED = (
    "sex",
    "tit",
    "cum",
    "nazi",
    "rap",
    "kok",
)  # syllables that would make an invented name read badly


class Split(enum.Enum):
    """Which of the two disjoint halves a dialogue is drawn from."""

    TRAIN = "train"
    HELD_OUT = "held_out"


def split_of(text: str) -> Split:
    """The only split that may use this name or number (one value in five is held out)."""
    return Split.HELD_OUT if zlib.crc32(text.replace(",", "").lower().encode()) % 5 == 0 else Split.TRAIN


class Vocabulary:
    """Draws names and figures of one split from one random source.

    Thread safety: none. Invariant: everything returned satisfies `split_of(core) is split`, where core is the
    invented word or the bare number.
    """

    def __init__(self, rng: random.Random, split: Split) -> None:
        self._rng = rng
        self._split = split

    def word(self) -> str:
        """An invented capitalised word such as "Velmora"."""
        while True:
            count = self._rng.choice((2, 2, 3))
            text = "".join(self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS) for _ in range(count))
            text = (text + self._rng.choice(_CODAS)).capitalize()
            if len(text) >= 4 and self._usable(text):
                return text

    def _usable(self, name: str) -> bool:
        return split_of(name) is self._split and not any(part in name.lower() for part in _AVOIDED)

    def product_word(self) -> str:
        """The distinguishing word of a product: invented, or now and then an ordinary one."""
        if self._rng.random() < 0.7:
            return self.word()
        return self._rng.choice([w for w in _PRODUCT_WORDS if split_of(w) is self._split])

    def place(self) -> str:
        """An invented town."""
        while True:
            text = (
                self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS) + self._rng.choice(_CODAS)
            ).capitalize()
            text += self._rng.choice(_PLACE_ENDS)
            if self._usable(text):
                return text

    def person(self) -> str:
        """A customer's name, with or without a title."""
        form = self._rng.choice(("{0} {1}", "Ms {1}", "Mr {1}", "{0}", "Dr {1}"))
        return form.format(self.word(), self.word())

    def bank(self) -> str:
        """The name of an invented bank."""
        form = self._rng.choice(("{0} Bank", "{0} Bank", "Bank of {1}", "{0} Savings Bank", "{1} Bank"))
        return form.format(self.word(), self.place())

    def card(self) -> str:
        """A card product such as "Velmora Card"."""
        return (
            f"{self.product_word()} {self._rng.choice(('Card', 'card', 'Card', 'credit card', 'debit card'))}"
        )

    def account(self) -> str:
        """An account product such as "Tarsin account"."""
        return (
            f"{self.product_word()} {self._rng.choice(('Account', 'account', 'account', 'savings account'))}"
        )

    def number(self, low: int, high: int) -> str:
        """A whole number in [low, high] of this split."""
        while True:
            text = str(self._rng.randint(low, high))
            if split_of(text) is self._split:
                return text

    def money(self, low: float, high: float) -> str:
        """An amount with a currency, log-uniform in [low, high]."""
        return self._rng.choice(_CURRENCIES).format(self.amount(low, high))

    def amount(self, low: float, high: float) -> str:
        """A bare amount such as "7.50" or "1,250"."""
        while True:
            value = low * (high / low) ** self._rng.random()
            form = self._rng.random()
            if value < 100:
                text = (
                    f"{value:.2f}"
                    if form < 0.5
                    else f"{round(value * 2) / 2:.2f}"
                    if form < 0.8
                    else f"{round(value)}"
                )
            else:
                step = 50 if form < 0.5 else 5
                text = f"{max(step, round(value / step) * step):,}"
                text = text if form < 0.75 else text.replace(",", "")
            if text not in ("0", "0.00") and split_of(text) is self._split:
                return text

    def percent(self) -> str:
        """A rate such as "2.35 %"."""
        while True:
            value = 0.05 * (400 ** self._rng.random())
            text = f"{value:.2f}" if self._rng.random() < 0.6 else f"{max(value, 0.1):.1f}"
            if split_of(text) is self._split:
                break
        return self._rng.choice(("{} %", "{}%", "{} percent", "{} % a year", "{} % per year")).format(text)

    def clock(self, low_hour: int, high_hour: int) -> str:
        """A time of day such as "17:30"."""
        while True:
            hour, minute = self._rng.randint(low_hour, high_hour), self._rng.choice(range(0, 60, 5))
            text = f"{hour}:{minute:02d}"
            if split_of(text) is self._split:
                return text


_ALTERNATION = re.compile(r"\[([^\[\]]*)\]")


def expand(template: str, rng: random.Random) -> str:
    """Replaces every "[a|b|]" of a template by one of its alternatives and tidies the spaces."""
    while True:
        template, count = _ALTERNATION.subn(lambda m: rng.choice(m.group(1).split("|")), template)
        if count == 0:
            return re.sub(r" +([,.?!])", r"\1", re.sub(r" {2,}", " ", template)).strip()


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]
