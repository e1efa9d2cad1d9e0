"""How long a text is for an embedder: counted by its own tokenizer, as it will be when the text is embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as RustTokenizer

from airi.errors import CheckpointError

__all__ = ["EmbedderTokens", "TokenCounter"]


class TokenCounter(Protocol):
    """Counts an embedder's tokens."""

    def count(self, text: str) -> int:
        """Tokens of the text as it is embedded, special ones included."""

    def starts(self, text: str) -> list[int]:
        """For each token of the text but special ones: the character that it begins at, in order."""


class EmbedderTokens:
    """Counts by a tokenizer.json. What a text writes as a special token is counted as the text that it is: no fewer
    tokens than the special one would be."""

    def __init__(self, backend: RustTokenizer) -> None:
        """Takes a copy of `backend`, which is not changed."""
        self._backend = RustTokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True

    @classmethod
    def load(cls, folder: str | Path) -> EmbedderTokens:
        """From a checkpoint folder; CheckpointError where its tokenizer.json cannot be read."""
        file = Path(folder) / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
        try:
            return cls(RustTokenizer.from_str(text))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file}: not a tokenizer of the `tokenizers` library: {error}") from None

    def count(self, text: str) -> int:
        return len(self._backend.encode(text))

    def starts(self, text: str) -> list[int]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [start for start, _ in encoding.offsets]
