"""Plain text: paragraphs between empty lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airi.retrieval.ingest.documents import Block, Document, clean

__all__ = ["read_plain"]

_BETWEEN = re.compile(r"(?:\r\n|\r|\n)(?:[^\S\r\n]*(?:\r\n|\r|\n))+")


def read_plain(
    text: str, source: str, *, title: str = "", metadata: Mapping[str, Any] | None = None
) -> Document:
    """A document of paragraphs, without headings."""
    text = clean(text)
    ends = [found.end() for found in _BETWEEN.finditer(text)]
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    starts = [0, *ends[:-1]]
    blocks = tuple(
        Block(kind="paragraph", start=start, end=end)
        for start, end in zip(starts, ends, strict=True)
        if end > start
    )
    return Document(source=source, text=text, blocks=blocks, title=title, metadata=dict(metadata or {}))
