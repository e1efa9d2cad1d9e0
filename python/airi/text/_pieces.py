"""What each token adds to the text, as bytes.

The decoders of the tokenizers that generate text (byte-level; "▁" for space with byte fallback)
work token by token: a text is the concatenation of its tokens' bytes. Knowing those bytes makes
incremental decoding one table look-up per token and gives log-probabilities their exact bytes.
A decoder that does not work token by token has no such table; `compile_pieces` then returns None.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

__all__ = ["Pieces", "compile_pieces"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_Step = Callable[[str], str | bytes]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table


_BYTE_LEVEL = _byte_of_character()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_LEVEL[c] for c in token])
    except KeyError:  # an added token with characters outside the table stands for itself
        return token.encode()


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


class Pieces(dict[int, bytes]):
    """Token id -> the bytes it adds to a text, filled as ids are seen.

    `hidden` ids (special tokens, when they are skipped) and ids outside the vocabulary add nothing.
    """

    def __init__(
        self, tokenizer: RustTokenizer, steps: tuple[_Step, ...], leading: str, hidden: frozenset[int]
    ) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._steps = steps
        self._leading = leading
        self.hidden = hidden

    @property
    def strips_leading(self) -> bool:
        """Whether the first visible token of a text loses a leading space."""
        return bool(self._leading)

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self.hidden else self._tokenizer.id_to_token(token_id)
        piece = b"" if token is None else self._convert(token)
        self[token_id] = piece
        return piece

    def first(self, token_id: int) -> bytes:
        """The bytes of `token_id` where it is the first visible token of a text."""
        piece = self[token_id]
        if self._leading == "one":
            return piece[1:] if piece[:1] == b" " else piece
        if self._leading == "all":
            return piece.replace(b" ", b"")
        return piece

    def _convert(self, token: str) -> bytes:
        piece: str | bytes = token
        for step in self._steps:
            if isinstance(piece, bytes):
                break
            piece = step(piece)
        return piece if isinstance(piece, bytes) else piece.encode()


def compile_pieces(
    tokenizer: RustTokenizer, decoder: dict[str, Any] | None
) -> Callable[[frozenset[int]], Pieces] | None:
    """A maker of `Pieces` for the decoder of a tokenizer.json; None where tokens do not stand alone."""
    if decoder is None:
        return None
    parts = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    steps: list[_Step] = []
    leading = ""
    fused = False
    for part in parts:
        kind = part.get("type")
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and part.get("stop") == 0 and part.get("content") == " ":
            if part.get("start") not in (0, 1) or leading:
                return None
            leading = "one" if part["start"] else ""
        elif fused:
            return None
        elif kind == "ByteLevel":
            steps.append(_byte_level)
        elif kind == "ByteFallback":
            steps.append(_byte_fallback)
        elif kind == "Replace" and "String" in part.get("pattern", {}):
            steps.append(_replacer(part["pattern"]["String"], part["content"]))
        elif kind == "Metaspace":
            steps.append(_replacer(part.get("replacement", "▁"), " "))
            leading = "" if part.get("prepend_scheme", "always") == "never" else "all"
        else:
            return None
    return lambda hidden: Pieces(tokenizer, tuple(steps), leading, hidden)


def _replacer(old: str, new: str) -> _Step:
    return lambda token: token.replace(old, new)
