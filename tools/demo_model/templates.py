"""Reads the files of message templates."""

from __future__ import annotations

import random
import re
from pathlib import Path

from .vocabulary import Split

Templates = dict[Split, tuple[str, ...]]

_MARKS = {"+": Split.TRAIN, "-": Split.HELD_OUT}


def read_templates(name: str) -> dict[str, Templates]:
    """The templates of a file beside this module, by the heading over them and by split."""
    found: dict[str, dict[Split, list[str]]] = {}
    heading = ""
    for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "=":
            heading = text
            found[heading] = {split: [] for split in Split}
        elif mark in _MARKS:
            found[heading][_MARKS[mark]].append(text)
    return {key: {split: tuple(lines) for split, lines in value.items()} for key, value in found.items()}


def _words() -> list[str]:
    """The longer words of all message templates for training."""
    files = ("intents.txt", "smalltalk.txt")
    texts = (t for name in files for part in read_templates(name).values() for t in part[Split.TRAIN])
    return sorted({word for text in texts for word in re.findall(r"[a-z]{4,}", text.lower())})


WORDS = _words()


def odd_word(rng: random.Random) -> str:
    """A word, or the start of one joined to the end of another: to be copied, as no one can know it by heart."""
    first, second = rng.choice(WORDS), rng.choice(WORDS)
    if rng.random() < 0.3:
        return first
    return first[: rng.randint(1, 5)] + second[-rng.randint(2, 6) :]


def some_words(rng: random.Random, low: int, high: int) -> str:
    """From `low` to `high` words without meaning together, half of them real ones."""
    count = rng.randint(low, high)
    return " ".join(rng.choice(WORDS) if rng.random() < 0.5 else odd_word(rng) for _ in range(count))


def read_shares(heading: str) -> dict[str, float]:
    """The intents that a heading names with the share of each: {"card_lost": 1.0} for a plain name."""
    parts = (part.split() for part in heading.split(","))
    return {name: float(share[0]) if share else 1.0 for name, *share in parts}
