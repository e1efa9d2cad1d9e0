"""A document's blocks as a tree of sections, by its headings."""

from __future__ import annotations

from dataclasses import dataclass, field

from airi.retrieval.ingest.documents import Block, Document

__all__ = ["Section", "sections_of"]


@dataclass(slots=True)
class Section:
    """A heading, the blocks under it, and the sections under those."""

    path: tuple[str, ...]
    """Headings from the outermost to its own."""
    level: int
    start: int
    end: int
    blocks: list[Block] = field(default_factory=list)
    """Its own: the heading and what stands before the first section inside of it."""
    inner: list[Section] = field(default_factory=list)

    @property
    def own_end(self) -> int:
        """Where its own blocks end."""
        return self.inner[0].start if self.inner else self.end


def sections_of(document: Document) -> Section:
    """The whole document as a section of level 0; its title, unless the first heading says the same, is its path."""
    title = document.title.strip()
    first = next((block.title for block in document.blocks if block.kind == "heading"), "")
    path: tuple[str, ...] = (title,) if title and title.casefold() != first.casefold() else ()
    root = Section(path, 0, 0, len(document.text))
    open_sections = [root]
    for block in document.blocks:
        if block.kind != "heading":
            open_sections[-1].blocks.append(block)
            continue
        while len(open_sections) > 1 and open_sections[-1].level >= block.level:
            open_sections.pop().end = block.start
        above = open_sections[-1]
        path = (*above.path, block.title) if block.title else above.path
        section = Section(path, block.level, block.start, len(document.text), [block])
        above.inner.append(section)
        open_sections.append(section)
    return root
