"""Cuts documents into chunks along their structure, by the embedder's own tokens."""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airi.errors import ConfigError, RequestError
from airi.retrieval.ingest.breaks import Breaks
from airi.retrieval.ingest.counting import TokenCounter
from airi.retrieval.ingest.documents import Block, Document
from airi.retrieval.ingest.sections import Section, sections_of

__all__ = ["Chunk", "Chunker", "chunker_version"]

_VERSION = 1
_MIN_TOKENS = 16
_CHARS_PER_TOKEN = 64
"""A text with more of them is not tried whole: hardly any has."""
_MAX_ID = 400
_SOLID = re.compile(r"\S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A span of a document. `text` is what is embedded: the headings above it, where asked for, and the span."""

    source: str
    ordinal: int
    """From 0, in the order of the document."""
    text: str
    start: int
    """The span [start, end) in characters of the document's text, without white space at its ends."""
    end: int
    prefix_chars: int
    """How much of `text` is headings: text[prefix_chars:] is the span."""
    headings: tuple[str, ...]
    tokens: int
    """Of `text`, exactly, special ones included."""
    page: int | None = None
    last_page: int | None = None
    repeat: int = 0
    """How many chunks of the same text stand before it in the document."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The document's metadata."""

    @property
    def hash(self) -> str:
        """SHA-256 of `text`, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """Made of its source and its text, so that it is the same wherever in the source the text stands."""
        name = self.source
        if len(name) > _MAX_ID:
            name = f"{name[:300]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return f"{name}#{self.hash[:24]}" + (f"-{self.repeat}" if self.repeat else "")

    @property
    def metadata(self) -> dict[str, Any]:
        """The document's metadata, and its own place under `chunk`."""
        place: dict[str, Any] = {
            "ordinal": self.ordinal,
            "start": self.start,
            "end": self.end,
            "prefix_chars": self.prefix_chars,
            "headings": list(self.headings),
        }
        if self.page is not None:
            place |= {"page": self.page, "last_page": self.last_page}
        return {**self.extra, "chunk": place}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunker:
    """Cuts documents. The same document gives the same chunks, and a section the same wherever it stands.

    A section that fits whole, with all sections in it, is one chunk; else its own blocks are cut, and each section in
    it by itself. So an edit changes chunks of its own section alone, of those around it only where they were one chunk.
    ConfigError for numbers that cannot be.
    """

    counter: TokenCounter
    max_tokens: int = 256
    """Of a chunk's text in the embedder, special ones included. None has more."""
    overlap_tokens: int = 0
    """About as many tokens of the end of a chunk are repeated by the next one of its section."""
    prefix_headings: bool = True
    """Whether chunks begin with the headings they stand under; they count as tokens."""

    def __post_init__(self) -> None:
        room = self.max_tokens - self.counter.count("")
        if room < _MIN_TOKENS:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}; it must be at least {_MIN_TOKENS} and the embedder's "
                f"{self.max_tokens - room} special tokens",
                field="max_tokens",
            )
        if not 0 <= self.overlap_tokens <= room // 2:
            raise ConfigError(
                f"overlap_tokens is {self.overlap_tokens}; it must be 0 to {room // 2}, half of a chunk",
                field="overlap_tokens",
            )

    @property
    def version(self) -> str:
        """Name, version and parameters: what an embedding space says of how its texts were cut."""
        return chunker_version(self.max_tokens, self.overlap_tokens, prefix_headings=self.prefix_headings)

    def chunks(self, document: Document) -> list[Chunk]:
        """All of a document but white space, in its order.

        Raises RequestError where a single character with its accents is longer than a chunk.
        """
        found: list[Chunk] = []
        seen: dict[str, int] = {}
        starts = [block.start for block in document.blocks]
        for span in self._section(document, sections_of(document)):
            text = span.prefix + document.text[span.start : span.end]
            first = _block_at(document, starts, span.start)
            last = _block_at(document, starts, span.end - 1)
            found.append(
                Chunk(
                    source=document.source,
                    ordinal=len(found),
                    text=text,
                    start=span.start,
                    end=span.end,
                    prefix_chars=len(span.prefix),
                    headings=span.path,
                    tokens=span.tokens,
                    page=first.page,
                    last_page=last.page,
                    repeat=seen.get(text, 0),
                    extra=document.metadata,
                )
            )
            seen[text] = seen.get(text, 0) + 1
        return found

    # -- sections ------------------------------------------------------------------------------

    def _section(self, document: Document, section: Section) -> Iterator[_Span]:
        text = document.text
        own = text[section.start : section.own_end].strip()
        if not own and len(section.inner) == 1:
            yield from self._section(document, section.inner[0])
            return
        headed = bool(section.blocks) and section.blocks[0].kind == "heading"
        prefix = self._prefix(section.path[:-1] if headed else section.path)
        whole = self._span(text, section.start, section.end, prefix, section.path)
        if whole is not None:
            if whole.tokens:
                yield whole
            return
        if own:
            yield from _Cutting(self, text, section, prefix, self._prefix(section.path)).spans()
        for inner in section.inner:
            yield from self._section(document, inner)

    def _span(self, text: str, start: int, end: int, prefix: str, path: tuple[str, ...]) -> _Span | None:
        """What is not white space of [start, end), None where it does not fit; of nothing, a span of 0 tokens."""
        if end - start > _CHARS_PER_TOKEN * self.max_tokens:
            return None
        body = text[start:end]
        start += len(body) - len(body.lstrip())
        body = body.strip()
        if not body:
            return _Span(start, start, "", path, 0)
        tokens = self.counter.count(prefix + body)
        return _Span(start, start + len(body), prefix, path, tokens) if tokens <= self.max_tokens else None

    def _prefix(self, path: tuple[str, ...]) -> str:
        """The headings as a line of their own; the outermost go first where they take more than half of a chunk."""
        if not self.prefix_headings:
            return ""
        nothing = self.counter.count("")
        for first in range(len(path)):
            prefix = " > ".join(path[first:]) + "\n\n"
            if self.counter.count(prefix) - nothing <= (self.max_tokens - nothing) // 2:
                return prefix
        return ""


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    prefix: str
    path: tuple[str, ...]
    tokens: int


class _Cutting:
    """One section's own blocks, cut into spans one behind the other."""

    def __init__(self, chunker: Chunker, text: str, section: Section, prefix: str, later_prefix: str) -> None:
        """`prefix` stands above the first span, which has the section's heading in it, `later_prefix` above others."""
        self._chunker = chunker
        self._text = text
        self._path = section.path
        self._start = section.start
        self._end = section.own_end
        self._prefix = prefix
        self._later = later_prefix
        offsets = chunker.counter.starts(text[self._start : self._end])
        self._tokens = [self._start + place for place in offsets]
        self._breaks = Breaks(text, section.blocks, self._end, self._whole(section.blocks))

    def spans(self) -> Iterator[_Span]:
        """They cover the section's own text but white space."""
        begin = done = self._start
        cut = False
        while (solid := _SOLID.search(self._text, done, self._end)) is not None:
            begin, done = (solid.start() if begin == done else begin), solid.start()
            prefix = self._later if cut else self._prefix
            found = self._next(begin, done, prefix)
            if found is None and begin < done:
                begin = done  # what comes does not fit behind what is repeated
                continue
            if found is None:
                raise RequestError(
                    f"the character at {done} is longer than {self._chunker.max_tokens} tokens",
                    field="max_tokens",
                )
            span, end = found
            yield span
            cut = True
            begin, done = self._repeated(begin, end), end

    def _next(self, begin: int, done: int, prefix: str) -> tuple[_Span, int] | None:
        """The span from `begin` to the best break behind `done`, and that break; None where none fits."""
        chunker = self._chunker
        fits = self._breaks.whole_at(done)
        room = chunker.max_tokens - chunker.counter.count(prefix)
        number = bisect.bisect_left(self._tokens, begin)
        while room > 0:
            limit = self._tokens[number + room] if number + room < len(self._tokens) else self._end
            limit = min(limit, begin + _CHARS_PER_TOKEN * room)
            middle = self._tokens[min(number + room // 2, len(self._tokens) - 1)] if self._tokens else done
            end = self._breaks.last(done, middle, limit) if limit > done else None
            if end is None:
                break
            span = chunker._span(self._text, begin, end, prefix, self._path)
            if span is not None:
                return span, end
            room -= max(1, self._excess(begin, end, prefix))
        if fits is None:
            return self._least(begin, done, prefix)
        span = chunker._span(self._text, begin, fits, prefix, self._path)
        return None if span is None else (span, fits)

    def _least(self, begin: int, done: int, prefix: str) -> tuple[_Span, int] | None:
        """A span of one character, where the tokenizer says nothing of shorter ones."""
        end = self._breaks.last(done, done, done + 1) if begin == done else None
        span = None if end is None else self._chunker._span(self._text, begin, end, prefix, self._path)
        return None if span is None or end is None else (span, end)

    def _excess(self, begin: int, end: int, prefix: str) -> int:
        """By how many tokens it is too long."""
        text = prefix + self._text[begin:end].strip()
        return self._chunker.counter.count(text) - self._chunker.max_tokens

    def _repeated(self, begin: int, end: int) -> int:
        """Where the next span begins, which repeats the end of this one."""
        overlap = self._chunker.overlap_tokens
        if not overlap:
            return end
        number = max(bisect.bisect_left(self._tokens, end) - overlap, 0)
        if number >= len(self._tokens):
            return end
        place = self._breaks.first(max(self._tokens[number], begin + 1), end)
        return end if place is None else place

    def _whole(self, blocks: list[Block]) -> frozenset[int]:
        """Where the tables and the code begin that fit one chunk, under either prefix."""
        return frozenset(
            block.start
            for block in blocks
            if block.kind in ("table", "code")
            and all(
                self._chunker._span(self._text, block.start, block.end, prefix, ()) is not None
                for prefix in {self._prefix, self._later}
            )
        )


def _block_at(document: Document, starts: list[int], place: int) -> Block:
    return document.blocks[max(bisect.bisect_right(starts, place) - 1, 0)]


def chunker_version(max_tokens: int, overlap_tokens: int, *, prefix_headings: bool = True) -> str:
    """`Chunker.version` of these parameters."""
    headings = "prefix" if prefix_headings else "none"
    return f"airi-structure/{_VERSION} max_tokens={max_tokens} overlap={overlap_tokens} headings={headings}"
