"""The KV arena as the engine handles it, whatever memory it lies in."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from airi.engine.arena import release_pages

__all__ = ["Arena", "HostArena", "own"]

_T = TypeVar("_T")


class Arena(Protocol):
    """Memory that blocks and weights lie in. Offsets and counts are bytes.

    *Thread safety*: none; what is done is in order with the steps of the thread that does it.
    """

    @property
    def nbytes(self) -> int: ...

    def part(self, start: int, count: int) -> Any:
        """A writable view, as a model of this memory's backend takes it."""
        ...

    def zero(self, start: int, count: int) -> None: ...

    def room(self, count: int) -> Any:
        """Host memory to save so much in; raises MemoryBudgetError."""
        ...

    def save(self, start: int, room: Any) -> None:
        """Copies what is there to such memory, as much as it holds."""
        ...

    def restore(self, start: int, room: Any) -> None:
        """Puts what was saved there. Raises MemoryBudgetError where the arena was released and cannot be had again."""
        ...

    def free(self, room: Any) -> None:
        """Takes such memory back, which may be what the next `room` gives."""
        ...

    def release(self) -> None:
        """Gives the memory back until it is written again; it is zeros then. Raises ConfigError where it cannot be."""
        ...


def own(thing: object, kind: type[_T]) -> _T:
    """What a platform has made itself, as what it is; raises TypeError for another's."""
    if not isinstance(thing, kind):
        raise TypeError(f"a {kind.__name__} is needed, not another platform's {type(thing).__name__}")
    return thing


class HostArena:
    """Memory of this process."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    @property
    def nbytes(self) -> int:
        """As `Arena.nbytes`."""
        return self.array.nbytes

    def part(self, start: int, count: int) -> NDArray[np.uint8]:
        """As `Arena.part`."""
        return self.array[start : start + count]

    def zero(self, start: int, count: int) -> None:
        """As `Arena.zero`."""
        self.array[start : start + count] = 0

    def room(self, count: int) -> NDArray[np.uint8]:
        """As `Arena.room`."""
        return np.empty(count, np.uint8)

    def save(self, start: int, room: NDArray[np.uint8]) -> None:
        """As `Arena.save`."""
        room[:] = self.part(start, len(room))

    def restore(self, start: int, room: NDArray[np.uint8]) -> None:
        """As `Arena.restore`."""
        self.part(start, len(room))[:] = room

    def free(self, room: NDArray[np.uint8]) -> None:
        """As `Arena.free`: it goes with whoever held it."""

    def release(self) -> None:
        """As `Arena.release`."""
        release_pages(self.array)
