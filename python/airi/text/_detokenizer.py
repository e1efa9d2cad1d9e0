"""Incremental decoding: tokens in, whole characters out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer as RustTokenizer

from airi.text._pieces import Pieces

__all__ = ["ByteDetokenizer", "Detokenizer", "WindowDetokenizer"]

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so at most three earlier ones can be waiting for their last.
_MAX_WAITING_BYTES = 3
_MAX_WAITING_TOKENS = 4
# Decoders that look at neighbours (WordPiece's spaces and apostrophes) look no farther than this.
_CONTEXT_TOKENS = 8


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One replacement character per bad byte, as the byte-fallback decoder of `tokenizers` writes them."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _REPLACEMENT * (error.end - error.start), error.end


codecs.register_error("airi-replace-each-byte", _replace_each_byte)
_make_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """Turns the tokens that follow a prompt into text, a few at a time."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` complete; never a part of a character."""
        ...

    def push_offsets(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """The same, and where in it each token begins (characters)."""
        ...

    def finish(self) -> str:
        """What is left: a replacement character for bytes that never became a character."""
        ...


class ByteDetokenizer:
    """Concatenates the tokens' bytes and hands out the characters that they complete.

    The text equals decode(prompt + output) minus decode(prompt) wherever that is valid UTF-8;
    bytes that are not become replacement characters.
    """

    __slots__ = ("_at_start", "_decode", "_decoder", "_pieces")

    def __init__(
        self, pieces: Pieces, prompt_ids: Sequence[int] = (), *, byte_fallback: bool = False
    ) -> None:
        self._pieces = pieces
        self._decoder = _make_decoder("airi-replace-each-byte" if byte_fallback else "replace")
        self._decode = self._decoder.decode
        self._at_start = pieces.strips_leading and not any(pieces[i] for i in prompt_ids)
        waiting = b""
        for token_id in reversed(prompt_ids):
            waiting = pieces[token_id] + waiting
            if len(waiting) >= _MAX_WAITING_BYTES:
                break
        self._decode(waiting[-_MAX_WAITING_BYTES:])

    @property
    def pieces(self) -> Pieces:
        """The bytes of each token."""
        return self._pieces

    @property
    def at_start(self) -> bool:
        """Whether the next token with any bytes begins the text, and loses its leading space."""
        return self._at_start

    @property
    def waiting(self) -> bytes:
        """The beginning of a character that the next tokens may complete."""
        return self._decoder.getstate()[0]

    def push(self, token_ids: Sequence[int]) -> str:
        pieces = self._pieces
        if self._at_start:
            return self.push_offsets(token_ids)[0]
        if len(token_ids) == 1:
            return self._decode(pieces[token_ids[0]])
        return self._decode(b"".join([pieces[i] for i in token_ids]))

    def push_offsets(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        text, offsets = "", []
        for token_id in token_ids:
            offsets.append(len(text))
            if self._at_start:
                text += self._decode(self._pieces.first(token_id))
                self._at_start = not self._pieces[token_id]
            else:
                text += self._decode(self._pieces[token_id])
        return text, offsets

    def finish(self) -> str:
        return self._decode(b"", final=True)


class WindowDetokenizer:
    """Decodes a short window of tokens again and again; for decoders that look at neighbours."""

    __slots__ = ("_known", "_known_text", "_new", "_skip_special_tokens", "_tokenizer")

    def __init__(
        self, tokenizer: RustTokenizer, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._known = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._known_text = self._text(self._known)
        self._new: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        return self.push_offsets(token_ids)[0]

    def push_offsets(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        text, offsets = "", []
        for token_id in token_ids:
            offsets.append(len(text))
            self._new.append(token_id)
            whole = self._text(self._known + self._new)
            incomplete = whole.endswith(_REPLACEMENT) and len(self._new) < _MAX_WAITING_TOKENS
            if not incomplete and len(whole) > len(self._known_text):
                text += self._take(whole)
        return text, offsets

    def finish(self) -> str:
        whole = self._text(self._known + self._new)
        return self._take(whole) if len(whole) > len(self._known_text) else ""

    def _take(self, whole: str) -> str:
        delta = whole[len(self._known_text) :]
        self._known, self._new = (self._known + self._new)[-_CONTEXT_TOKENS:], []
        self._known_text = self._text(self._known)
        return delta

    def _text(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        return text
