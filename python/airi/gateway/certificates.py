"""What an answer says of the forbidden texts that held for it, so that anybody can check: `airi verify` does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from airi.policy.forbidden import ForbiddenPolicy

if TYPE_CHECKING:
    from airi.gateway.choice import Piece
    from airi.text import TextStream

__all__ = ["Certificate", "Proof", "text_digest"]

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Certificate(msgspec.Struct, kw_only=True):
    """What a text was generated under: no match of the policy's patterns is in it.

    That is about the string of its characters: not about what it means, nor about another spelling of the same.
    """

    version: Literal[1] = 1
    policy: Annotated[Sha256, Meta(description="Of the patterns that held.")]
    automaton: Annotated[Sha256, Meta(description="Of the tables that were made of them.")]
    tokenizer: Annotated[Sha256, Meta(description="Of the model's tokenizer.json.")]
    final_state: Annotated[str, Meta(description="Of the automaton, behind the text; hexadecimal.")]
    tokens: Annotated[int, Meta(description="How many were generated.")]
    text_sha256: Annotated[Sha256, Meta(description="Of the text in UTF-8.")]
    start: (
        Annotated[int, Meta(description="Where an echoed prompt ends and the text begins, in characters.")]
        | UnsetType
    ) = UNSET
    text: (
        Annotated[
            str, Meta(description="The text, where calls of tools were made of it and are shown instead.")
        ]
        | UnsetType
    ) = UNSET


def text_digest(text: str) -> str:
    """What certificates name a text by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Proof:
    """Collects what goes out of one choice, and says what can be said of it.

    *Thread safety*: none.
    """

    def __init__(self, policy: ForbiddenPolicy, stream: TextStream, tokenizer_sha256: str) -> None:
        """`stream`: what the text comes from, before content rules see it."""
        self._policy = policy
        self._stream = stream
        self._tokenizer_sha256 = tokenizer_sha256
        self._shown: list[str] = []
        self._tokens: int | None = None
        self._final_state: bytes | None = None

    def add(self, pieces: Iterable[Piece]) -> None:
        """Text that goes out."""
        self._shown += [piece.text for piece in pieces]

    def show_instead(self, pieces: Iterable[Piece]) -> None:
        """Text that goes out in place of all that was added."""
        self._shown = [piece.text for piece in pieces]

    def end(self, final_state: bytes | None, tokens: int) -> None:
        """The choice has ended. `final_state`: what the engine says of the tokens, where these have."""
        self._final_state, self._tokens = final_state, tokens

    def certificate(self, *, shows_text: bool = True) -> Certificate | None:
        """Of what went out, with the text of it where the answer does not show that.

        None where nothing can be said: a content rule's replacement has made a match, or the engine says nothing.
        """
        if self._tokens is None:
            return None
        text, final_state = "".join(self._shown), self._final_state
        if text != self._stream.text and self._policy.first_match(text) is not None:
            return None
        if text != self._stream.text or self._stream.is_cut:
            final_state = self._policy.state_after(text)
        if final_state is None:
            return None
        return Certificate(
            policy=self._policy.digest.hex(),
            automaton=self._policy.automaton_sha256,
            tokenizer=self._tokenizer_sha256,
            final_state=final_state.hex(),
            tokens=self._tokens,
            text_sha256=text_digest(text),
            text=UNSET if shows_text else text,
        )
