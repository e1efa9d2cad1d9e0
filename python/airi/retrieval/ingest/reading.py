"""A file's documents, by what its name says it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from airi.retrieval.ingest.documents import Document, Failure
from airi.retrieval.ingest.html import charset_of, read_html
from airi.retrieval.ingest.jsonl import JsonlFields, read_jsonl
from airi.retrieval.ingest.markdown import read_markdown
from airi.retrieval.ingest.pdf import read_pdf
from airi.retrieval.ingest.plain import read_plain

__all__ = ["SUFFIXES", "read_bytes", "read_file"]

_MARKDOWN = (".md", ".markdown", ".mdown")
_HTML = (".html", ".htm", ".xhtml")
_JSONL = (".jsonl", ".ndjson")
SUFFIXES = frozenset((*_MARKDOWN, *_HTML, *_JSONL, ".pdf", ".txt", ".text", ".rst"))
"""What is read of a folder. Any other file that is named itself is read as plain text."""


def read_file(
    path: Path, source: str | None = None, *, fields: JsonlFields | None = None
) -> Iterator[Document | Failure]:
    """The documents of one file, each under `source`, which is its path unless said.

    Never raises for what is in a file: that, and a file that cannot be opened, are failures.
    """
    named = str(path) if source is None else source
    try:
        data = path.read_bytes()
    except OSError as error:
        yield Failure(source=named, reason=f"cannot be read: {error.strerror or error}")
        return
    yield from read_bytes(data, path.suffix, named, fields=fields)


def read_bytes(
    data: bytes, suffix: str, source: str, *, fields: JsonlFields | None = None
) -> Iterator[Document | Failure]:
    """The documents of a file's bytes; `suffix`, as `.md`, says what it is."""
    suffix = suffix.lower()
    if not data.strip(b"\x00\t\n\x0b\x0c\r \xef\xbb\xbf"):
        yield Failure(source=source, reason="empty file")
    elif suffix == ".pdf":
        yield read_pdf(data, source)
    elif suffix in _JSONL:
        yield from read_jsonl(data, source, fields or JsonlFields())
    else:
        text = _text(data, source, charset_of(data) if suffix in _HTML else None)
        yield text if isinstance(text, Failure) else _document(text, suffix, source)


def _document(text: str, suffix: str, source: str) -> Document | Failure:
    if suffix in _HTML:
        document = read_html(text, source)
    elif suffix in _MARKDOWN:
        document = read_markdown(text, source)
    else:
        document = read_plain(text, source)
    return document if document.text.strip() else Failure(source=source, reason="no text in this file")


def _text(data: bytes, source: str, charset: str | None) -> str | Failure:
    """The bytes as text: UTF-8, or the encoding that an HTML file names."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = error
    if charset is not None and charset not in ("utf-8", "utf8"):
        try:
            return data.decode(charset)
        except (LookupError, ValueError):
            return Failure(source=source, reason=f"neither UTF-8 nor {charset}, which it says it is")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Failure(source=source, reason="looks like UTF-16; texts must be UTF-8")
    line = data.count(b"\n", 0, wrong.start) + 1
    reason = f"not UTF-8: byte 0x{data[wrong.start]:02x} at byte {wrong.start}"
    return Failure(source=source, line=line, reason=reason)
