"""The adversary of forbidden texts is one: without the set it spells them, with it it does not."""

from __future__ import annotations

import random
from pathlib import Path

from airi.forbidden import ForbiddenSet
from airi.policy.forbidden import forbidden_patterns
from benches.bench_content_rules import FORBIDDEN
from benches.bench_forbidden import Adversary, Subject, count_matches, make_checkpoint
from tests.policy.samples import make_words


def test_an_adversary_completes_what_is_forbidden_only_where_nothing_is(tmp_path: Path) -> None:
    words = make_words(random.Random(2), 20)
    tokens = [b"", *(bytes([byte]) for byte in range(256)), *(f" {word[:3]}".encode() for word in words)]
    tokens = list(dict.fromkeys(tokens))
    make_checkpoint(tmp_path, tokens)
    subject = Subject(tmp_path, tokens)
    full = ForbiddenSet(tuple(forbidden_patterns("all", words=words, regexes=FORBIDDEN)))
    found = {
        name: count_matches(Adversary(subject, forbidden, words, 16).run(64), tokens, words)
        for name, forbidden in (("with", full), ("without", None))
    }
    assert found["with"] == 0
    assert found["without"] > 32
