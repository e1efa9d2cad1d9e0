"""What do content rules and token masks cost a token, and are rules exact?

Exactness: random documents full of what rules look for and of what nearly is, cut at random bytes, against independent
matchers (`content_documents`): what is missed or invented, which matches would have been given out in part, and whether
text was held back that begins no open match.

Rules: all built-in detectors, which redact, and a block list of 100 words, on texts in pieces of 5 bytes, one call a
piece; the same in one call for comparison. Masks: the block list and five regular expressions forbidden, over a
vocabulary of 128,256 tokens, one `fill` and one `advance` a token: along prose, along random tokens that are allowed,
and along tokens that spell the forbidden as far as they may. CPU time of one thread, median over turns. What the
numbers do not mean: no model runs, no event goes anywhere, and texts are made, not written. Hyperscan, where its
environment is given, scans the same pieces for the same patterns, but without what stands around them and without check
digits, and cannot tell which match is open.

    python -m benches.bench_content_rules [--documents 100000] [--hyperscan-python PATH]
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec

import numpy as np

from airi._core import guard
from airi.policy._detectors import DETECTORS
from airi.policy.content import ContentAction, ContentRule, ContentRules
from benches.common import plain_parser, print_rows, run_contestant
from benches.content_documents import Counts, Searched
from tests.policy.samples import make_document, make_words

TARGET_RULES_US = 2.0
TARGET_MASKS_US = 20.0
PIECE = 5
VOCABULARY = 128_256
FORBIDDEN = (
    r"\d{3}-\d{2}-\d{4}",
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
    r"(?i:top)\s+secret\b",
    r"\bsk-[A-Za-z0-9]{20}",
    r"https?://[a-z.]*internal[a-z.]*/",
)


P = ParamSpec("P")


def cpu_us(work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> float:
    """Microseconds of this thread's CPU time."""
    start = time.thread_time_ns()
    work(*args, **kwargs)
    return (time.thread_time_ns() - start) / 1e3


def make_prose(rng: random.Random, length: int) -> str:
    """Sentences of made words of which none is forbidden."""
    syllables = ["ta", "re", "mi", "no", "lu", "se", "ka", "vo", "ing", "er", "st", "ph"]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(2000)]
    text = ""
    while len(text) < length:
        text += " ".join(rng.choices(words, k=rng.randrange(4, 15))).capitalize()
        text += rng.choice((". ", ", ", " 42 ", ".\n\n"))
    return text[:length]


def texts(rng: random.Random, words: list[str], length: int) -> dict[str, str]:
    """What rules are run on, by name."""
    dense = ""
    while len(dense) < length:
        dense += make_document(rng, words).replace("-----BEGIN", "") + " "
    return {
        "prose": make_prose(rng, length),
        "matches everywhere": dense[:length],
        "always open": ("a.b_c%d" * length)[:length],
        "digits": "".join(rng.choices("0123456789 -", k=length)),
    }


def push_all(rules: ContentRules, pieces: Sequence[str]) -> None:
    stream = rules.filter()
    for piece in pieces:
        stream.push(piece)
        if stream.blocked is not None:
            stream = rules.filter()
    stream.finish()


def feed_all(rules: ContentRules, pieces: Sequence[bytes]) -> None:
    scanner = guard.Scanner(rules.automaton)
    for piece in pieces:
        scanner.feed(piece)


def count_documents(count: int, seed: int = 9) -> Counts:
    """What becomes of so many documents."""
    searched, counts = Searched(seed), Counts()
    for _ in range(count):
        searched.document(counts)
    return counts


def exactness_row(counts: Counts) -> dict[str, Any]:
    """The verdict on documents."""
    return {
        "question": "content rules on documents cut at random bytes",
        **{name: getattr(counts, name) for name in Counts.__slots__},
        "target": "nothing missed, leaked or held in vain",
        "reached": counts.is_exact and counts.matches > 0,
    }


def hyperscan_us(python: str, words: list[str], streams: dict[str, str], turns: int) -> dict[str, float]:
    """What Hyperscan takes for a piece of each text."""
    around = re.compile(r"\(\?<?!(?:\[[^\]]*\]|\\d)\)")
    escaped = re.compile(r"\\u([0-9a-f]{4})")
    patterns = [
        escaped.sub(lambda found: chr(int(found[1], 16)), around.sub("", detector.regex))
        for detector in DETECTORS.values()
    ]
    patterns += [rf"(?i)\b{re.escape(word)}\b" for word in words]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"patterns": patterns, "texts": streams, "piece": PIECE, "turns": turns}, file)
        file.flush()
        found = run_contestant(python, "hyperscan_rules", [str(Path(file.name))])
    if not found["matches"]:
        raise RuntimeError("hyperscan found nothing")
    return {name: float(figure) for name, figure in found["us_per_piece"].items()}


def measure_rules(turns: int, length: int, hyperscan_python: str | None = None) -> list[dict[str, Any]]:
    rng = random.Random(1)
    words = make_words(rng, 100)
    rules = ContentRules(
        [
            ContentRule(name="detectors", action=ContentAction.REDACT, detectors=("pii", "credentials")),
            ContentRule(name="words", action=ContentAction.BLOCK, words=tuple(words)),
        ]
    )
    rows: list[dict[str, Any]] = []
    streams = texts(rng, words, length)
    peer = {} if hyperscan_python is None else hyperscan_us(hyperscan_python, words, streams, turns)
    for name, text in streams.items():
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        data = text.encode()
        cut = [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
        found: dict[str, list[float]] = {"filter": [], "scanner": [], "bulk": []}
        for _ in range(turns):
            found["filter"].append(cpu_us(push_all, rules, pieces) / len(pieces))
            found["scanner"].append(cpu_us(feed_all, rules, cut) / len(cut))
            found["bulk"].append(cpu_us(feed_all, rules, [data]) / len(data))
        figure = median(found["filter"])
        rows.append(
            {
                "question": f"content rules on a stream, {name}",
                "us_per_token": round(figure, 3),
                "target": f"<= {TARGET_RULES_US:g}",
                "reached": figure <= TARGET_RULES_US,
                "scanner_us_per_token": round(median(found["scanner"]), 3),
                "one_call_ns_per_byte": round(1e3 * median(found["bulk"]), 2),
                "patterns": rules.automaton.num_patterns,
                "states": rules.automaton.num_states,
                **({"hyperscan_us_per_token": round(peer[name], 3)} if peer else {}),
            }
        )
    return rows


def make_vocabulary(rng: random.Random, words: list[str]) -> list[bytes]:
    """Bytes, numbers of up to three digits, and strings of letters with and without a space before them."""
    tokens = dict.fromkeys([b"", *(bytes([b]) for b in range(256)), *(str(n).encode() for n in range(1000))])
    tokens |= dict.fromkeys(word[:k].encode() for word in words for k in range(2, len(word) + 1))
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (i + 2) for i in range(len(letters))]
    while len(tokens) < VOCABULARY:
        word = "".join(rng.choices(letters, weights, k=rng.randrange(2, 11)))
        form = rng.choice(
            (word, f" {word}", f" {word}", word.capitalize(), f" {word.capitalize()}", f"{word}.")
        )
        tokens[form.encode()] = None
    return list(tokens)[:VOCABULARY]


def tokenize(text: bytes, tokens: Sequence[bytes]) -> list[int]:
    """The longest token, again and again."""
    ids = {token: i for i, token in enumerate(tokens) if token}
    found: list[int] = []
    at = 0
    while at < len(text):
        token = next(text[at : at + k] for k in range(12, 0, -1) if text[at : at + k] in ids)
        found.append(ids[token])
        at += len(token)
    return found


class Walk:
    """Fills the mask and advances by a wish, or by a token without bytes where the wish is forbidden."""

    def __init__(self, masks: guard.TokenMasks) -> None:
        self.masks = masks
        self.state = masks.after(b"")
        self.words = np.zeros(masks.num_words, np.uint32)
        self.refused = 0

    def run(self, wishes: Sequence[int]) -> None:
        masks, words = self.masks, self.words
        for wish in wishes:
            masks.fill(self.state, words)
            advanced = masks.advance(self.state, wish)
            if advanced is None:
                self.refused += 1
            else:
                self.state = advanced


def adversary(rng: random.Random, words: list[str], tokens: Sequence[bytes], count: int) -> list[int]:
    """Tokens that spell forbidden words, numbers and addresses."""
    ids: list[int] = []
    while len(ids) < count:
        spelt = rng.choice(
            (
                f" {rng.choice(words)} ",
                f" {rng.randrange(1000)}-{rng.randrange(100)}-{rng.randrange(10_000)} ",
                f" {rng.choice(words)}.x@{rng.choice(words)}.com ",
                " Top secret ",
                f" sk-{rng.choice(words) * 6} ",
            )
        )
        ids += tokenize(spelt.encode(), tokens)
    return ids[:count]


def measure_masks(turns: int, count: int) -> list[dict[str, Any]]:
    rng = random.Random(2)
    words = make_words(rng, 100)
    patterns = [guard.Pattern(w, name=w, literal=True, ignore_case=True, word_boundary=True) for w in words]
    patterns += [guard.Pattern(regex, name=f"regex {i}") for i, regex in enumerate(FORBIDDEN)]
    tokens = make_vocabulary(rng, words)
    start = time.thread_time_ns()
    masks = guard.TokenMasks(guard.Automaton(patterns), tokens)
    built_ms = (time.thread_time_ns() - start) / 1e6
    wishes = {
        "prose": tokenize(make_prose(rng, 5 * count).encode(), tokens)[:count],
        "random tokens": rng.choices(range(1, len(tokens)), k=count),
        "adversarial": adversary(rng, words, tokens, count),
    }
    rows: list[dict[str, Any]] = []
    for name, ids in wishes.items():
        cached = masks.num_cached
        cold_us = cpu_us(Walk(masks).run, ids)
        found = [cpu_us(Walk(masks).run, ids) / len(ids) for _ in range(turns)]
        walk = Walk(masks)
        walk.run(ids)
        rows.append(
            {
                "question": f"masks of forbidden patterns, {name}",
                "us_per_token": round(median(found), 2),
                "target": f"<= {TARGET_MASKS_US:g}",
                "reached": median(found) <= TARGET_MASKS_US,
                "refused": walk.refused,
                "first_visit_us": round(
                    max(0.0, cold_us - median(found) * len(ids)) / max(1, masks.num_cached - cached), 1
                ),
                "states_visited": masks.num_cached - cached,
                "built_ms": round(built_ms, 1),
                "vocabulary": len(tokens),
            }
        )
    return rows


def main() -> None:
    parser = plain_parser(__doc__, "hyperscan")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--documents", type=int, default=1000, help="3 ms each")
    options = parser.parse_args()
    counts = count_documents(options.documents)
    if not counts.is_exact:
        raise SystemExit(f"rules are not exact: {counts}")
    rows = [exactness_row(counts)]
    rows += measure_rules(options.turns, PIECE * options.tokens, options.hyperscan_python)
    rows += measure_masks(options.turns, options.tokens)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
