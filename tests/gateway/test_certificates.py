"""Certificates of texts that went out otherwise than they were generated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.gateway.certificates import Proof, text_digest
from airi.gateway.choice import Piece
from airi.policy.forbidden import ForbiddenPolicy
from airi.text import TextStream

POLICY = ForbiddenPolicy(ForbiddenSet((ForbiddenPattern(name="r.words[0]", regex="secret"),)))


def proof(generated: str, *shown: str, is_cut: bool = False) -> Proof:
    stream = cast("TextStream", SimpleNamespace(text=generated, is_cut=is_cut))
    made = Proof(POLICY, stream, "0" * 64)
    for text in shown:
        made.add([Piece(text, [], [])])
    return made


def test_a_text_that_goes_out_as_it_was_generated_has_the_engine_s_state() -> None:
    made = proof("a sec", "a ", "sec")
    assert made.certificate() is None, "it has not ended"
    made.end(b"state", 3)
    certificate = made.certificate()
    assert certificate is not None
    assert (certificate.final_state, certificate.tokens) == (b"state".hex(), 3)
    assert certificate.text_sha256 == text_digest("a sec")


@pytest.mark.parametrize(
    ("generated", "shown", "fields"),
    [
        ("a sec stop", "a sec", {"is_cut": True}),
        ("a xxx", "a [REDACTED]", {}),
        ("", "", {"is_cut": True}),
    ],
)
def test_one_that_was_cut_or_replaced_has_the_state_of_what_went_out(
    generated: str, shown: str, fields: dict[str, Any]
) -> None:
    made = proof(generated, shown, **fields)
    made.end(b"state", 3)
    certificate = made.certificate()
    assert certificate is not None
    assert certificate.final_state == POLICY.state_after(shown).hex()
    assert certificate.text_sha256 == text_digest(shown)


def test_a_replacement_that_makes_a_match_has_no_certificate() -> None:
    made = proof("sexcret", "secret")
    made.end(b"state", 3)
    assert made.certificate() is None
    made.show_instead([Piece("gone", [], [])])
    certificate = made.certificate()
    assert certificate is not None
    assert certificate.text_sha256 == text_digest("gone")


def test_without_the_engine_s_word_there_is_none() -> None:
    made = proof("a", "a")
    made.end(None, 1)
    assert made.certificate() is None
