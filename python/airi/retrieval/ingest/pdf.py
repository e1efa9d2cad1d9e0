"""PDF, by pypdf: pure Python without dependencies of its own, so it is one of AIRI's, and loaded for a PDF alone."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

from airi.retrieval.ingest.documents import MAX_LEVEL, Document, Failure, Piece, document_of

__all__ = ["read_pdf"]

_BETWEEN = re.compile(r"\n[^\S\n]*\n\s*")
_MAX_OUTLINE = 10_000


def read_pdf(data: bytes, source: str) -> Document | Failure:
    """A document of paragraphs with their pages, under the headings of its outline where it has one.

    A page that cannot be read fails the file: half of a document would look like all of it.
    """
    import pypdf

    # Its warnings name neither the file nor anything that its reader could do.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    page: int | None = None
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            return Failure(source=source, reason="encrypted PDF; it needs a password")
        titles = _titles(reader)
        pieces: list[Piece] = []
        for page in range(1, len(reader.pages) + 1):
            pieces += _page(reader.pages[page - 1].extract_text(), page, titles.get(page, []))
    except Exception as error:  # a hostile file gets pypdf to raise whatever there is
        return Failure(source=source, page=page, reason=f"broken PDF: {_line(error)}")
    if not any(piece.kind != "heading" for piece in pieces):
        return Failure(source=source, reason="no text in this PDF; pages of pictures need OCR first")
    return document_of(source, pieces)


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _titles(reader: Any) -> dict[int, list[tuple[str, int]]]:
    """The outline's titles and levels by the pages that they point to; a broken outline is none."""
    found: dict[int, list[tuple[str, int]]] = {}
    try:
        _collect(reader, reader.outline, 1, found)
    except Exception:  # it is decoration: the text is there without it
        return {}
    return found


def _collect(reader: Any, items: list[Any], level: int, found: dict[int, list[tuple[str, int]]]) -> None:
    for item in items:
        if isinstance(item, list):
            _collect(reader, item, level + 1, found)
            continue
        page = reader.get_destination_page_number(item)
        title = " ".join(str(item.title).split())
        if page is not None and page >= 0 and title and sum(map(len, found.values())) < _MAX_OUTLINE:
            found.setdefault(page + 1, []).append((title, min(level, MAX_LEVEL)))


def _page(text: str, page: int, titles: list[tuple[str, int]]) -> list[Piece]:
    """Paragraphs of one page; a title of the outline is a heading where a line says just that, else at its top."""
    pieces: list[Piece] = []
    lines: list[str] = []
    waiting = list(titles)

    def end() -> None:
        paragraphs = _BETWEEN.split("\n".join(lines))
        pieces.extend(Piece(kind="paragraph", text=each.strip(), page=page) for each in paragraphs)
        lines.clear()

    every = text.splitlines()
    known = {" ".join(line.split()).casefold() for line in every}
    for title, level in [each for each in waiting if each[0].casefold() not in known]:
        pieces.append(Piece(kind="heading", text=title, level=level, page=page))
        waiting.remove((title, level))
    for line in every:
        found = next((t for t in waiting if t[0].casefold() == " ".join(line.split()).casefold()), None)
        if found is None:
            lines.append(line)
            continue
        end()
        waiting.remove(found)
        pieces.append(Piece(kind="heading", text=line.strip(), level=found[1], page=page))
    end()
    return [piece for piece in pieces if piece.text.strip()]
