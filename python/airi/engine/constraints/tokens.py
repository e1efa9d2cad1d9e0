"""A model's vocabulary as grammars see it: the bytes that each token adds to a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from airi.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    from airi.text import Tokenizer

__all__ = ["TokenTable"]

_MARKER = b"\xff"
"""Begins the library's own notation of special tokens; no text has that byte."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A tokenizer for grammars. Its tokens are the pieces that texts are made of here, to the byte."""

    tokenizer: LLTokenizer
    eos_id: int
    """Stands for every end of sequence: masks allow it where a text may end."""
    special_ids: frozenset[int]
    """Tokens that are no text; no grammar allows them unless it names them."""

    @classmethod
    def load(cls, path: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> TokenTable:
        """Of the checkpoint in a folder, for logits [vocab_size]; RequestError where its texts cannot be constrained.

        Takes up to a second for large vocabularies.
        """
        from llguidance import LLTokenizer

        from airi.text import Tokenizer

        try:
            text = Tokenizer.load(path)
        except CheckpointError as error:
            raise RequestError(
                f"structured: the model has no tokenizer: {error}", field="structured"
            ) from None
        pieces = _pieces(text, vocab_size)
        special = frozenset(i for i in text.special_ids if i < vocab_size)
        eos = _eos_id(text, eos_token_ids, special)
        try:
            tokenizer = LLTokenizer(text.to_json(), n_vocab=vocab_size, eos_token=eos)
        except (ValueError, OverflowError):
            tokenizer = None
        if tokenizer is None or not _agrees(tokenizer, pieces, special):
            wrapped = cast(
                "TokenizerWrapper", _Pieces(text, pieces, special, eos)
            )  # all that is asked of one
            tokenizer = LLTokenizer(wrapped, eos_token=eos)
        return cls(tokenizer, eos, special)


def _pieces(text: Tokenizer, vocab_size: int) -> list[bytes]:
    pieces = text.pieces()
    if pieces is None:
        raise RequestError(
            "structured: the model's tokens have no bytes of their own (its tokenizer.json has a decoder that looks "
            "at neighbours), so its text cannot be constrained",
            field="structured",
        )
    return [pieces[token] for token in range(vocab_size)]


def _eos_id(text: Tokenizer, eos_token_ids: Sequence[int], special: frozenset[int]) -> int:
    """An id that stands for the end; one that is no text, where there is one."""
    own = [] if text.eos_id is None else [text.eos_id]
    candidates = [*eos_token_ids, *own]
    for token in candidates:
        if token in special:
            return token
    if candidates:
        return candidates[0]
    raise RequestError("structured: the model has no end of sequence", field="structured")


def _agrees(tokenizer: LLTokenizer, pieces: Sequence[bytes], special: frozenset[int]) -> bool:
    """Whether the library reads tokenizer.json as texts here are made."""
    for token, piece in enumerate(pieces):
        if token in special or not piece:
            if not tokenizer.is_special_token(token):
                return False
        elif _MARKER not in piece and tokenizer.decode_bytes([token]) != piece:
            return False
    return True


class _Pieces:
    """What the library asks of a tokenizer that it does not know."""

    def __init__(self, text: Tokenizer, pieces: Sequence[bytes], special: frozenset[int], eos: int) -> None:
        self._text = text
        self.eos_token_id = eos
        self.bos_token_id = text.bos_id
        self.special_token_ids = sorted(special)
        self.tokens = [b"" if _MARKER in piece else piece for piece in pieces]
        self.is_tokenizer_wrapper = True
        self._ids = {
            piece: i for i, piece in reversed(list(enumerate(self.tokens))) if piece and i not in special
        }
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that these bytes are made of, to the byte: the tokenizer's own where they are, as it may add a space
        at the beginning, else the longest pieces."""
        raw = text.encode() if isinstance(text, str) else bytes(text)
        own = self._text.encode(raw.decode(errors="replace"), add_special_tokens=False)
        if b"".join(self.tokens[token] for token in own) == raw:
            return own
        tokens: list[int] = []
        at = 0
        while at < len(raw):
            for length in range(min(self._longest, len(raw) - at), 0, -1):
                token = self._ids.get(raw[at : at + length])
                if token is not None:
                    break
            else:
                return tokens  # no token has this byte: what is left is nobody's to write
            tokens.append(token)
            at += length
        return tokens
