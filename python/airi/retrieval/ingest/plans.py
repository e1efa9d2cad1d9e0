"""What to do so that a source's chunks are there: what to add, to move, to keep and to remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airi.retrieval.ingest.chunker import Chunk

__all__ = ["Plan", "Shelf", "plan_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of one source. Done twice, it does nothing the second time."""

    source: str
    add: tuple[Chunk, ...] = ()
    """New texts: to be embedded."""
    move: tuple[Chunk, ...] = ()
    """Texts that are there, at another place now or with other metadata: no need to embed them again."""
    keep: tuple[str, ...] = ()
    """Ids of what is there as it is."""
    remove: tuple[str, ...] = ()
    """Ids of what the source has no more."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.add or self.move or self.remove)


class Shelf(Protocol):
    """Where chunks are kept."""

    def sources(self) -> Sequence[str]:
        """Those that it has chunks of."""

    def stored(self, source: str) -> Mapping[str, Mapping[str, Any]]:
        """The metadata of a source's chunks, by their ids."""

    def apply(self, plans: Sequence[Plan]) -> None:
        """Does all of the plans, or none of them: RequestError where it cannot keep what one of them has."""


def plan_for(source: str, chunks: Sequence[Chunk], stored: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan that makes `stored` the chunks. Ids are made of texts, so the same id is the same text."""
    wanted = {chunk.id: chunk for chunk in chunks}
    there = {name: chunk for name, chunk in wanted.items() if name in stored}
    moved = {name for name, chunk in there.items() if chunk.metadata != dict(stored[name])}
    return Plan(
        source=source,
        add=tuple(chunk for name, chunk in wanted.items() if name not in stored),
        move=tuple(wanted[name] for name in wanted if name in moved),
        keep=tuple(name for name in there if name not in moved),
        remove=tuple(name for name in stored if name not in wanted),
    )
