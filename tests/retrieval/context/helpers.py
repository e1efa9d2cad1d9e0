"""Hits of documents, and a model's tokenizer."""

from __future__ import annotations

from typing import Any

from airi.retrieval.context import ContextHit

__all__ = ["chunk_hit", "hit", "words"]


def words(name: str, count: int = 20) -> str:
    """A text of its own."""
    return " ".join(f"{name}{i}" for i in range(count))


def hit(name: str, score: float = 1.0, text: str | None = None, **more: Any) -> ContextHit:
    return ContextHit(
        id=name, text=words(name) if text is None else text, score=score, source=f"{name}.md", **more
    )


def chunk_hit(
    document: str,
    start: int,
    end: int,
    ordinal: int,
    score: float = 1.0,
    *,
    source: str = "d.md",
    **chunk: Any,
) -> ContextHit:
    """A hit that is a span of a document, behind a line of headings."""
    prefix = "Head\n\n"
    place = {"start": start, "end": end, "ordinal": ordinal, "prefix_chars": len(prefix), **chunk}
    return ContextHit(
        id=f"{source}:{start}",
        text=prefix + document[start:end],
        score=score,
        source=source,
        metadata={"chunk": {"headings": ["Head"], **place}},
    )
