"""HTML, by the standard library's parser: it takes any markup, fetches nothing, and needs no other package."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from airi.retrieval.ingest.documents import BlockKind, Document, Piece, document_of

__all__ = ["charset_of", "read_html"]

_CHARSET = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_NEVER_TEXT = frozenset(("script", "style", "template", "noscript", "svg", "iframe", "object", "select"))
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")
)
_UNCLOSED = frozenset(("p", "li", "dt", "dd", "tr", "td", "th", "tbody", "thead", "tfoot", "option"))
_BLOCKS = frozenset(
    (
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "main",
        "nav",
        "p",
        "section",
        "summary",
    )
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


def charset_of(data: bytes) -> str | None:
    """The encoding that a file names for itself in its first 1,024 bytes."""
    found = _CHARSET.search(data[:1024])
    return found.group(1).decode("ascii").lower() if found else None


def read_html(text: str, source: str) -> Document:
    """The text that a page shows. Left out are scripts, styles, `nav`, and what is hidden: nobody who looks at the
    page would have read that."""
    reader = _Reader(hides=True)
    reader.feed(text)
    reader.close()
    if reader.skipping:  # an element without an end would swallow the rest
        reader = _Reader(hides=False)
        reader.feed(text)
        reader.close()
    reader.flush()
    return document_of(source, reader.pieces, title=" ".join(reader.title.split()))


class _Reader(HTMLParser):
    def __init__(self, *, hides: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[Piece] = []
        self.title = ""
        self._hides = hides
        self._texts: list[str] = []
        self._kind: BlockKind = "paragraph"
        self._level = 0
        self._lists = 0
        self._tables = 0
        self._pre = 0
        self._in_title = False
        self._skipped = ""
        self._skip_depth = 0

    @property
    def skipping(self) -> bool:
        """Whether something that is left out has not ended; scripts end with the file, as in browsers."""
        return bool(self._skipped) and self._skipped not in _NEVER_TEXT

    def flush(self) -> None:
        """Ends the block that is being read."""
        text = "".join(self._texts)
        self._texts = []
        if self._kind == "code":
            text = text.strip("\n")
        else:
            text = "\n".join(line for line in (" ".join(raw.split()) for raw in text.split("\n")) if line)
        if text.strip():
            self.pieces.append(Piece(kind=self._kind, text=text, level=self._level))
        self._kind, self._level = "paragraph", 0
        if self._tables:
            self._kind = "table"
        elif self._lists:
            self._kind = "list"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped:
            if self._skipped not in _UNCLOSED or tag in _VOID:
                self._skip_depth += tag == self._skipped
                return
            if tag not in _BLOCKS | _UNCLOSED and tag not in _HEADINGS:
                return
            self._skipped = ""  # `<p hidden>` ends where the next block begins
        if self._is_left_out(tag, dict(attrs)):
            if tag in _BLOCKS:
                self._break()
            self._skipped, self._skip_depth = tag, 1
        elif tag == "title":
            self._in_title = True
        else:
            self._open(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped:
                self._skip_depth -= 1
                if self._skip_depth == 0:
                    self._skipped = ""
            return
        if tag == "title":
            self._in_title = False
        elif tag in ("ul", "ol"):
            self._lists = max(0, self._lists - 1)
            self._end_if(at_end=not self._lists and not self._tables)
        elif tag == "table":
            self._tables = max(0, self._tables - 1)
            self._end_if(at_end=not self._lists and not self._tables)
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
            self._end_if(at_end=not self._lists and not self._tables)
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._break()

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._in_title:
            self.title += data
        else:
            self._texts.append(data if self._pre else data.replace("\n", " ").replace("\r", " "))

    def _is_left_out(self, tag: str, attrs: dict[str, str | None]) -> bool:
        if tag in _NEVER_TEXT:
            return True
        if not self._hides or tag in _VOID:
            return False
        hidden = "hidden" in attrs or (attrs.get("aria-hidden") or "").lower() == "true"
        return tag == "nav" or hidden or bool(_HIDDEN.search(attrs.get("style") or ""))

    def _open(self, tag: str) -> None:
        if tag == "br" or tag == "tr":
            self._texts.append("\n")
        elif tag in ("td", "th"):
            if "".join(self._texts[-1:]) not in ("", "\n"):
                self._texts.append(" | ")
        elif tag == "li":
            self._texts.append("\n- ")
        elif tag in ("ul", "ol", "table", "pre"):
            self._begin(tag)
        elif tag in _HEADINGS:
            self._break()
            if not self._lists and not self._tables:
                self._kind, self._level = "heading", _HEADINGS[tag]
        elif tag in _BLOCKS:
            self._break()

    def _begin(self, tag: str) -> None:
        inside = self._lists or self._tables
        if not inside:
            self.flush()
        elif tag == "pre":
            self._texts.append("\n")
        if tag == "table":
            self._tables += 1
        elif tag == "pre":
            self._pre += 1
        else:
            self._lists += 1
        if not inside:
            self._kind = "table" if tag == "table" else "code" if tag == "pre" else "list"

    def _end_if(self, *, at_end: bool) -> None:
        if at_end:
            self.flush()
        else:
            self._texts.append("\n")

    def _break(self) -> None:
        """A block begins or ends: inside of a list or a table no more than a space does."""
        if self._pre:
            return
        if self._lists or self._tables:
            self._texts.append(" ")
        else:
            self.flush()
