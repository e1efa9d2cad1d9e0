"""Vectors of one space in memory, one row for each row of the collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airi.errors import RequestError
from airi.retrieval.columns import Grown
from airi.retrieval.spaces import Vectors

__all__ = ["PRECISIONS", "Matrix", "MatrixBuffer", "Precision", "check_fits"]

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
_PART_BYTES = 1 << 20
"""Of float32 at a time, where what is kept has fewer bits: it stays in the cache between both loops."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """[rows, dimension], as it was at one moment: whoever has it never sees rows move.

    In int8 each row has a scale, so that its largest number is 127; in float16 what is beyond its range is not kept.
    """

    data: NDArray[Any]
    scales: NDArray[np.float32] | None
    longest: float
    """Length of the longest vector."""

    @property
    def dimension(self) -> int:
        return int(self.data.shape[1])

    def scores(self, query: Vectors, count: int, *, first: int = 0) -> Vectors:
        """[count - first] dot products with the rows from `first` on, rounded as BLAS rounds them."""
        if self.data.dtype == np.float32:
            whole: Vectors = self.data[first:count] @ query
            return whole
        found = np.empty(count - first, np.float32)
        step = max(1, _PART_BYTES // (4 * self.dimension))
        for begin in range(first, count, step):
            part = self.data[begin : min(begin + step, count)].astype(np.float32)
            np.dot(part, query, out=found[begin - first : begin - first + len(part)])
        if self.scales is not None:
            found *= self.scales[first:count]
        return found

    def rows(self, slots: NDArray[np.int64]) -> Vectors:
        """[slots, dimension] float32, a copy."""
        found: Vectors = self.data.take(slots, 0).astype(np.float32, copy=False)
        if self.scales is not None:
            found *= self.scales[slots, None]
        return found


class MatrixBuffer:
    """A matrix that grows. What was taken of it stays as it was: rows are written once, and growth makes a new array.

    Thread safety: one writer.
    """

    def __init__(self, dimension: int, precision: Precision) -> None:
        self._precision = precision
        self._data = Grown(precision, dimension)
        self._scales = Grown(np.float32) if precision == "int8" else None
        self._longest = 0.0

    @property
    def precision(self) -> Precision:
        return self._precision

    @property
    def nbytes(self) -> int:
        return self._data.data.nbytes + (0 if self._scales is None else self._scales.data.nbytes)

    def put(self, slots: NDArray[np.int64], vectors: Vectors) -> None:
        """Writes rows that had no vector."""
        if not len(slots):
            return
        self._data.count = max(self._data.count, int(slots.max()) + 1)
        for grown in (self._data, self._scales):
            if grown is not None:
                grown.reserve(self._data.count)
                grown.count = self._data.count
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        self._longest = max(self._longest, float(np.sqrt(squares.max())))
        if self._scales is None:
            self._data.data[slots] = vectors
            return
        scales = np.abs(vectors).max(1) / np.float32(127)
        self._scales.data[slots] = scales
        self._data.data[slots] = np.rint(vectors / np.where(scales == 0, 1, scales)[:, None])

    def reserve(self, count: int) -> None:
        """Makes room for so many rows."""
        self._data.reserve(count)
        if self._scales is not None:
            self._scales.reserve(count)

    def taken(self) -> Matrix:
        """What there is now."""
        return Matrix(self._data.data, None if self._scales is None else self._scales.data, self._longest)


def check_fits(vectors: Vectors, precision: Precision, ids: list[str]) -> None:
    """RequestError for a row with numbers beyond float16, where that is what is kept in memory."""
    if precision != "float16":
        return
    beyond = np.flatnonzero(np.abs(vectors).max(1, initial=0) > np.finfo(np.float16).max)
    if len(beyond):
        raise RequestError(
            f"vectors[{beyond[0]}] of row {ids[beyond[0]]!r} has numbers beyond 65504, which float16 does not have",
            field=f"vectors[{beyond[0]}]",
        )
