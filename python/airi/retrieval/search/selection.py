"""Which rows a filter leaves, worked out once for all searches between two changes of rows."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from airi.errors import RequestError
from airi.retrieval.columns import Columns, Mask
from airi.retrieval.filters import FieldTypes, parse
from airi.retrieval.search.matrix import Matrix
from airi.retrieval.spaces import Vectors

__all__ = ["Selected", "Selections"]

_MAX_KEPT = 256
"""Filters of one moment whose rows are kept."""
_MAX_GATHERED = 16 << 20
"""Bytes of vectors that all filters of one moment may keep beside the matrix."""


class Selected:
    """Rows that are there and that a filter holds of."""

    __slots__ = ("gathered", "mask", "slots")

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        """[rows of the view]"""
        self.slots = np.flatnonzero(mask).astype(np.int64)
        self.gathered: dict[int, Vectors] = {}
        """Their vectors by number of space, where they are few."""


class Selections:
    """Filters of one moment, the ones asked for lately kept with their rows.

    Thread safety: any thread.
    """

    def __init__(self, columns: Columns, fields: FieldTypes | None, count: int, live: Mask | None) -> None:
        self._columns = columns
        self._fields = fields
        self._count = count
        self._live = live
        self._kept: dict[bytes, Selected] = {}
        self._room = _MAX_GATHERED
        self._lock = threading.Lock()

    def of(self, written: Any) -> Selected:
        """The rows of a filter in its JSON form; RequestError where it is not one."""
        try:
            key = msgspec.json.encode(written, order="sorted")
        except (TypeError, ValueError, RecursionError):
            raise RequestError(
                'filter must be a JSON object such as {"lang": "de"}', field="filter"
            ) from None
        found = self._kept.get(key)
        if found is not None:
            return found
        mask = self._columns.mask(parse(written, self._fields), self._count)
        found = Selected(mask if self._live is None else mask & self._live)
        with self._lock:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
                self._room = _MAX_GATHERED
            self._kept[key] = found
        return found

    def vectors(self, selected: Selected, space: int, matrix: Matrix) -> Vectors:
        """[selected, dimension] float32; kept for the next search while there is room."""
        found = selected.gathered.get(space)
        if found is None:
            found = matrix.rows(selected.slots)
            with self._lock:
                if found.nbytes <= self._room:
                    self._room -= found.nbytes
                    selected.gathered[space] = found
        return found

    def live(self) -> NDArray[np.int64]:
        """All rows that are there."""
        if self._live is None:
            return np.arange(self._count, dtype=np.int64)
        return np.flatnonzero(self._live).astype(np.int64)
