"""Markdown: CommonMark with tables, as markdown-it-py reads it; offsets are those of the file's own text."""

from __future__ import annotations

import re
from functools import cache

from markdown_it import MarkdownIt

from airi.retrieval.ingest.documents import MAX_TITLE, Block, BlockKind, Document, clean

__all__ = ["read_markdown"]

_KINDS: dict[str, BlockKind] = {
    "heading_open": "heading",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:[^\n]*\n)*?---[ \t]*(?:\r?\n|$)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^()]*\)")
_LINK = re.compile(r"\[([^\]]*)\](?:\([^()]*\)|\[[^\]]*\])")


@cache
def _parser() -> MarkdownIt:
    """Blocks alone: what stands inside of a paragraph is not asked for."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def read_markdown(text: str, source: str) -> Document:
    """A document whose blocks are the file's own lines. What belongs to no block, as definitions of links, goes with
    the block before it."""
    text = clean(text)
    front = _FRONT_MATTER.match(text)
    begin = front.end() if front else 0
    lines = [begin]
    lines.extend(begin + found.end() for found in _LINE.finditer(text[begin:]))
    blocks: list[Block] = []
    if front:
        blocks.append(Block(kind="code", start=0, end=begin))
    tokens = _parser().parse(text[begin:])
    for place, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start = lines[token.map[0]] if blocks else 0
        kind = _KINDS.get(token.type, "paragraph")
        title = _plain(tokens[place + 1].content[:MAX_TITLE]) if kind == "heading" else ""
        level = int(token.tag[1:]) if kind == "heading" else 0
        blocks.append(Block(kind=kind, start=start, end=start, level=level, title=title))
    if text and not blocks:
        blocks.append(Block(kind="paragraph", start=0, end=0))
    return Document(source=source, text=text, blocks=_closed(blocks, len(text)))


def _closed(blocks: list[Block], length: int) -> tuple[Block, ...]:
    """The same, each up to where the next one begins."""
    ends = [block.start for block in blocks[1:]] + [length]
    return tuple(
        Block(kind=block.kind, start=block.start, end=end, level=block.level, title=block.title)
        for block, end in zip(blocks, ends, strict=True)
    )


def _plain(heading: str) -> str:
    """A heading's words, without links, images and emphasis."""
    words = _LINK.sub(r"\1", _IMAGE.sub(r"\1", heading))
    return " ".join(words.replace("**", "").replace("__", "").replace("`", "").split())
