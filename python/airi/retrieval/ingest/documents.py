"""What readers make of a file: documents of blocks, or one line that says why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Block", "BlockKind", "Document", "Failure", "Piece", "clean", "document_of"]

BlockKind = Literal["heading", "paragraph", "list", "table", "code"]
MAX_LEVEL = 6
MAX_TITLE = 200
"""Characters of a heading that chunks under it are told."""
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of a document's text, [start, end) in characters, the white space behind it included."""

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    """Of a heading: 1 to 6."""
    title: str = ""
    """Of a heading: its words without markup."""
    page: int | None = None
    """From 1, where the document has pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text and its structure. *Invariant*: blocks lie one behind the other and cover the text."""

    source: str
    """Where it comes from: a path, or a path and a row of it."""
    text: str
    blocks: tuple[Block, ...]
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a file, or a part of it, was not read. Its text is one line that names both."""

    source: str
    reason: str
    line: int | None = None
    page: int | None = None

    def __str__(self) -> str:
        place = "" if self.line is None else f":{self.line}"
        page = "" if self.page is None else f"page {self.page}: "
        return f"{self.source}{place}: {page}{self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A block before it has a place: its text stands alone."""

    kind: BlockKind
    text: str
    level: int = 0
    page: int | None = None


def clean(text: str) -> str:
    """The text with U+FFFD for what no UTF-8 and no database holds: halves of surrogate pairs, and NUL."""
    return _NO_TEXT.sub("\ufffd", text)


def document_of(
    source: str, pieces: Iterable[Piece], *, title: str = "", metadata: Mapping[str, Any] | None = None
) -> Document:
    """A document whose text is that of the pieces, with an empty line between two."""
    blocks: list[Block] = []
    texts: list[str] = []
    place = 0
    kept = [piece for piece in pieces if piece.text.strip()]
    for number, piece in enumerate(kept):
        text = clean(piece.text) + ("\n\n" if number + 1 < len(kept) else "")
        heading = " ".join(piece.text[:MAX_TITLE].split()) if piece.kind == "heading" else ""
        blocks.append(
            Block(
                kind=piece.kind,
                start=place,
                end=place + len(text),
                level=piece.level,
                title=clean(heading),
                page=piece.page,
            )
        )
        texts.append(text)
        place += len(text)
    return Document(
        source=source, text="".join(texts), blocks=tuple(blocks), title=title, metadata=dict(metadata or {})
    )
