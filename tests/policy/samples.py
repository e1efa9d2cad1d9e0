"""Texts full of what content rules look for, of what nearly is, and validators that share nothing with the core's."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from airi.policy._detectors import DETECTORS
from tests.guard.naive import NaivePattern

# Lengths of account numbers of the countries that `iban` and the letters below can make.
IBAN_LENGTHS = {
    "DE": 22,
    "GB": 22,
    "NO": 15,
    "NL": 18,
    "BE": 16,
    "BG": 22,
    "DO": 28,
    "EE": 20,
    "EG": 29,
    "GE": 22,
}
IBAN_LENGTHS |= {"GL": 18, "LB": 28}
LETTERS = "DEGBNOL"


def luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdecimal()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return 12 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def iban(text: str) -> bool:
    code = "".join(c for c in text if c.isalnum()).upper()
    if IBAN_LENGTHS.get(code[:2]) != len(code):
        return False
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


PASSES: dict[str, Callable[[str], bool] | None] = {"NONE": None, "LUHN": luhn, "IBAN": iban}


def naive_detector(name: str) -> NaivePattern:
    return NaivePattern(regex=DETECTORS[name].regex, passes=PASSES[DETECTORS[name].validator])


def naive_word(word: str) -> NaivePattern:
    return NaivePattern(regex=rf"(?<![0-9A-Za-z_])(?i:{re.escape(word)})(?![0-9A-Za-z_])")


def make_card(rng: random.Random, length: int = 16) -> str:
    body = rng.choice("3456") + "".join(rng.choices("0123456789", k=length - 2))
    return next(body + d for d in "0123456789" if luhn(body + d))


def make_iban(rng: random.Random) -> str:
    country = rng.choice(("DE", "GB", "NO", "NL"))
    account = "".join(rng.choices("0123456789" + LETTERS, k=IBAN_LENGTHS[country] - 4))
    return next(code for check in range(100) if iban(code := f"{country}{check:02}{account}"))


def grouped(rng: random.Random, text: str) -> str:
    separator = rng.choice(("", " ", "-", "\u00a0", "\u2011", ".", "\n"))
    return separator.join(text[i : i + 4] for i in range(0, len(text), 4))


def make_piece(rng: random.Random, words: list[str]) -> str:
    """One thing that a rule finds, or nearly."""
    key = "".join(rng.choices("ABCDE01234", k=rng.choice((15, 16, 17, 20))))
    pieces: list[Callable[[], str]] = [
        lambda: rng.choice(words),
        lambda: rng.choice(words).upper() + rng.choice(("", "s", "'", "-")),
        lambda: rng.choice(("the", "of", "größe", "a.b", "x_y", "...", "1,000", "\n", "«", "éé")),
        lambda: "".join(rng.choices("0123456789 -", k=rng.randrange(1, 24))),
        lambda: "".join(rng.choices(LETTERS + "019 ", k=rng.randrange(1, 30))),
        lambda: grouped(rng, make_card(rng, rng.choice((13, 15, 16, 19)))),
        lambda: grouped(rng, make_iban(rng)),
        lambda: grouped(rng, make_iban(rng)).lower(),
        lambda: (
            f"{rng.choice(('219', '666', '078', '900'))}-{rng.choice(('09', '00'))}-{rng.choice(('9999', '0000'))}"
        ),
        lambda: (
            rng.choice(("bob", "a.b+c", "x" * 65, "jürgen", "我的me"))
            + rng.choice(("@", " @", "@@"))
            + rng.choice(("ex.org", "a-b.co.uk", "größe.рф"))
        ),
        lambda: rng.choice(("AKIA", "ASIA", "AKI")) + key,
        lambda: (
            rng.choice(("ghp_", "ghx_", "sk-", "sk_live_", "xoxb-", "AIza", "github_pat_", "hf_", "glpat-"))
            + key * 3
        ),
        lambda: f"eyJ{key}.eyJ{key}.{key}",
        lambda: f"-----BEGIN RSA PRIVATE KEY-----\n{key * 3}\n{key}=\n-----END RSA PRIVATE KEY-----",
    ]
    return rng.choice(pieces)()


def make_document(rng: random.Random, words: list[str]) -> str:
    """Pieces side by side, some of them broken off."""
    text = ""
    for _ in range(rng.randrange(1, 7)):
        piece = make_piece(rng, words)
        if rng.random() < 0.2:
            piece = piece[: rng.randrange(len(piece) + 1)]
        text += piece + rng.choice(("", " ", " ", ", ", ": ", "\n"))
    return text


def make_words(rng: random.Random, count: int) -> list[str]:
    """Different words for a block list."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices("abcdelnorst", k=rng.randrange(4, 10)))] = None
    return list(words)
