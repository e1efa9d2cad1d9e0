"""Where a text may be cut: behind blocks, behind sentences, behind words, between characters."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Sequence

from airi.retrieval.ingest.documents import Block

__all__ = ["Breaks"]

_SENTENCE = re.compile(r"""[.!?…]["'”’)\]]*\s+(?=[^\sa-z])|[。！？]["'”’」』）]*\s*""")
_LINE_END = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_SOLID = re.compile(r"\S")
_JOINERS = ("\u200d", "\ufe0e", "\ufe0f")


class Breaks:
    """The breaks of one section's own blocks, as places in the document's text.

    Blocks that are to stay whole have none inside.
    """

    def __init__(self, text: str, blocks: Sequence[Block], end: int, whole: frozenset[int]) -> None:
        """`whole`: where the blocks begin that are not to be cut."""
        self._text = text
        self._end = end
        solid = (
            (_SOLID.search(text, block.start, block.end), block) for block in blocks if block.start in whole
        )
        self._whole = {found.start(): block.end for found, block in solid if found is not None}
        self._blocks = [block.end for block in blocks if block.kind != "heading"]
        self._headings = [block.end for block in blocks if block.kind == "heading"]
        self._sentences: list[int] = []
        self._words: list[int] = []
        for block in blocks:
            if block.start in whole:
                continue
            pattern = _SENTENCE if block.kind == "paragraph" else _LINE_END
            self._sentences += self._inside(pattern, block)
            self._words += self._inside(_WORD, block)
        self._ends = sorted(self._sentences + self._blocks)

    def last(self, begin: int, middle: int, limit: int) -> int | None:
        """The best place in (begin, limit] to end a chunk at, None where none is allowed.

        Behind a block or else a sentence from `middle` on; then behind any block, sentence, heading, word; then
        anywhere. A lower kind is taken only where there is no higher one: chunks of half the size are better than torn
        sentences, and a heading is not left without what it stands above.
        """
        if limit >= self._end > begin:
            return self._end
        ranked = ((self._blocks, middle), (self._sentences, middle), (self._blocks, begin))
        lower = ((self._sentences, begin), (self._headings, begin), (self._words, begin))
        for places, floor in (*ranked, *lower):
            found = _last(places, max(floor, begin), limit)
            if found is not None:
                return found
        return self._anywhere(begin, limit)

    def whole_at(self, place: int) -> int | None:
        """The end of the block whose text begins at `place`, if that is not to be cut."""
        return self._whole.get(place)

    def first(self, begin: int, end: int) -> int | None:
        """Where what is repeated of [begin, end) can begin: at a sentence, or else at a word, or nowhere."""
        for places in (self._ends, self._words):
            number = bisect.bisect_left(places, begin)
            if number < len(places) and places[number] < end:
                return places[number]
        return None

    def _inside(self, pattern: re.Pattern[str], block: Block) -> list[int]:
        found = (match.end() for match in pattern.finditer(self._text, block.start, block.end))
        return [place for place in found if block.start < place < block.end]

    def _anywhere(self, begin: int, limit: int) -> int | None:
        if any(start < limit < end for start, end in self._whole.items()):
            return None
        place = limit
        while place > begin and not self._parts(place):
            place -= 1
        return place if place > begin else limit if limit > begin else None

    def _parts(self, place: int) -> bool:
        """Whether two characters meet there, rather than a character and its accent."""
        if place >= len(self._text):
            return True
        after = self._text[place]
        joined = after in _JOINERS or self._text[place - 1] == "\u200d"
        return not joined and not unicodedata.combining(after)


def _last(places: Sequence[int], begin: int, limit: int) -> int | None:
    """The last of `places` in (begin, limit]."""
    number = bisect.bisect_right(places, limit)
    return places[number - 1] if number and places[number - 1] > begin else None
