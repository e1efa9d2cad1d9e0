"""What the numbers in an answer stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from airi.retrieval.context.passages import Passage

__all__ = ["Citation", "Cited", "Mention", "citations_of", "cite"]

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_NUMBERS = r"\d{1,4}(?:\s{0,3}[,;–-]\s{0,3}\d{1,4})*"
_CITED = re.compile(rf"(?:\[\s{{0,3}}({_NUMBERS})\s{{0,3}}\]|【\s{{0,3}}({_NUMBERS})\s{{0,3}}】)(?!\()")
_PART = re.compile(r"(\d+)(?:\s*[–-]\s*(\d+))?")
_MAX_RANGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """Where a numbered document of a prompt comes from."""

    number: int
    source: str
    ids: tuple[str, ...]
    """Of the hits it is made of."""
    start: int | None
    """The span [start, end) of the source's text, in characters; None where hits do not say."""
    end: int | None
    pages: tuple[int, int] | None
    """The first and the last one."""
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A number in an answer, [start, end) with its brackets; `citation` is None where no document has it."""

    number: int
    start: int
    end: int
    citation: Citation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cited:
    """The citations of an answer."""

    mentions: tuple[Mention, ...]
    """In the order of the answer."""

    @property
    def citations(self) -> tuple[Citation, ...]:
        """Each document that was cited, once, in the order of the answer."""
        found = {m.number: m.citation for m in self.mentions if m.citation is not None}
        return tuple(found.values())

    @property
    def unknown(self) -> tuple[int, ...]:
        """Numbers that no document has, each once: the model has made them up."""
        return tuple(dict.fromkeys(m.number for m in self.mentions if m.citation is None))


def citations_of(passages: Sequence[Passage]) -> dict[int, Citation]:
    """By number, from 1."""
    return {
        number: Citation(
            number=number,
            source=passage.source,
            ids=tuple(hit.id for hit in passage.hits),
            start=passage.start,
            end=passage.end,
            pages=passage.pages,
            headings=passage.headings,
        )
        for number, passage in enumerate(passages, 1)
    }


def cite(answer: str, citations: Mapping[int, Citation]) -> Cited:
    """Finds [1], [1, 2], [1-3] and 【1】 in an answer, not in its code, and not where they are a link's text."""
    mentions: list[Mention] = []
    code = [found.span() for found in _CODE.finditer(answer)]
    for found in _CITED.finditer(answer):
        if any(start <= found.start() < end for start, end in code):
            continue
        span = found.span()
        mentions += [
            Mention(number=number, start=span[0], end=span[1], citation=citations.get(number))
            for number in _numbers(found.group(1) or found.group(2))
        ]
    return Cited(mentions=tuple(mentions))


def _numbers(text: str) -> Iterator[int]:
    for first, last in _PART.findall(text):
        low, high = int(first), int(last or first)
        if low <= high < low + _MAX_RANGE:
            yield from range(low, high + 1)
        else:
            yield from (low, high)
