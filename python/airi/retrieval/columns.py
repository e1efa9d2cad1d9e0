"""Metadata by field, so that a filter is a few operations of numpy over all rows at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from airi.retrieval.filters import And, Compare, Exists, Filter, In, Not

__all__ = ["Column", "Columns", "Grown", "Mask", "value_at"]

Mask = NDArray[np.bool_]
_ABSENT = -1
_SEVERAL = -2
_VALUELESS = "valueless"
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


class Grown:
    """An array that is appended to in amortised constant time.

    Whoever took `data` before keeps what was there: growth makes another array.
    """

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        shape = (16,) if width is None else (16, width)
        self.data: NDArray[Any] = np.zeros(shape, dtype)
        self.count = 0

    def append(self, values: Any) -> None:
        """Adds rows at the end."""
        self.reserve(self.count + len(values))
        self.data[self.count : self.count + len(values)] = values
        self.count += len(values)

    def reserve(self, count: int) -> None:
        """Makes room for so many."""
        if count > len(self.data):
            grown = np.zeros((max(count, len(self.data) * 3 // 2), *self.data.shape[1:]), self.data.dtype)
            grown[: self.count] = self.data[: self.count]
            self.data = grown

    def first(self, count: int) -> NDArray[Any]:
        """The first ones."""
        return self.data[:count]


def _kind_and_value(value: Any) -> tuple[str, Any]:
    """True is not 1, and 1 is 1.0."""
    if isinstance(value, bool):
        return "boolean", value
    return ("string", value) if isinstance(value, str) else ("number", float(value))


class Column:
    """One field of all rows: a code for each row, and what the codes stand for."""

    def __init__(self) -> None:
        self._codes = Grown(np.int32)
        self._code_of: dict[tuple[str, Any], int] = {}
        self._several_rows = Grown(np.int64)
        self._several_codes = Grown(np.int32)
        self._numbers = Grown(np.float64)

    @property
    def count(self) -> int:
        """Rows that it has."""
        return self._codes.count

    def extend(self, values: Iterable[Any]) -> None:
        """Adds the values of further rows; None where a row has none."""
        first = self._codes.count
        codes = []
        for value in values:
            if value is None:
                codes.append(_ABSENT)
            elif isinstance(value, list):
                plain = [v for v in value if v is not None and not isinstance(v, list | dict)]
                several = {self._code(*_kind_and_value(v)) for v in plain} or {self._code(_VALUELESS, None)}
                self._several_rows.append([first + len(codes)] * len(several))
                self._several_codes.append(list(several))
                codes.append(_SEVERAL)
            elif isinstance(value, dict):
                codes.append(self._code(_VALUELESS, None))
            else:
                codes.append(self._code(*_kind_and_value(value)))
        self._codes.append(codes)

    def _code(self, kind: str, value: Any) -> int:
        code = self._code_of.get((kind, value))
        if code is None:
            code = self._code_of[kind, value] = len(self._code_of)
            self._numbers.append([value if kind == "number" else np.nan])
        return code

    def present(self, count: int) -> Mask:
        """Which of the first rows have the field."""
        found: Mask = self._codes.first(count) != _ABSENT
        return found

    def among(self, values: Iterable[Any], count: int) -> Mask:
        """Which of the first rows have one of these values."""
        codes = [self._code_of.get(_kind_and_value(value), _ABSENT) for value in values]
        good = np.zeros(len(self._code_of) + 1, np.bool_)
        good[[code for code in codes if code != _ABSENT]] = True
        return self._rows_with(good, count)

    def compared(self, operator: str, bound: str | float, count: int) -> Mask:
        """Which of the first rows have a value of the bound's type that is so to it."""
        compare = _COMPARE[operator]
        good = np.zeros(len(self._code_of) + 1, np.bool_)
        if isinstance(bound, str):
            texts = ((c, v) for (kind, v), c in self._code_of.items() if kind == "string")
            good[[code for code, value in texts if compare(value, bound)]] = True
        else:
            good[: self._numbers.count] = compare(self._numbers.first(self._numbers.count), bound)
        return self._rows_with(good, count)

    def _rows_with(self, good: Mask, count: int) -> Mask:
        """`good` says it of each code, its last place of rows without one."""
        codes = self._codes.first(count)
        found: Mask = good[np.where(codes >= 0, codes, len(good) - 1)]
        several = self._several_rows.count
        if several:
            rows = self._several_rows.first(several)[good[self._several_codes.first(several)]]
            found[rows[rows < count]] = True
        return found


class Columns:
    """Columns of the fields that were asked for, made when they are first needed.

    Thread safety: any thread.
    """

    def __init__(self, values_of: Callable[[str, int, int], Iterable[Any]]) -> None:
        self._values_of = values_of
        """Values of a row's own field, or the JSON of its metadata, of rows from one place up to another."""
        self._columns: dict[str, Column] = {}
        self._lock = threading.Lock()

    def mask(self, wanted: Filter, count: int) -> Mask:
        """[count] which of the first rows a filter holds of."""
        with self._lock:
            return self._mask(wanted, count)

    def _mask(self, wanted: Filter, count: int) -> Mask:
        if isinstance(wanted, In):
            return self._column(wanted.field, count).among(wanted.values, count)
        if isinstance(wanted, Compare):
            return self._column(wanted.field, count).compared(wanted.operator, wanted.value, count)
        if isinstance(wanted, Exists):
            return self._column(wanted.field, count).present(count)
        if isinstance(wanted, Not):
            return ~self._mask(wanted.part, count)
        is_and = isinstance(wanted, And)
        found = np.full(count, is_and)
        for part in wanted.parts:
            mask = self._mask(part, count)
            found = found & mask if is_and else found | mask
        return found

    def _column(self, name: str, count: int) -> Column:
        column = self._columns.setdefault(name, Column())
        if column.count < count:
            column.extend(self._values_of(name, column.count, count))
        return column


def value_at(metadata: bytes, path: list[str], name: str) -> Any:
    """What metadata has under `a.b`, or under that very name."""
    value: Any = msgspec.json.decode(metadata)
    if name in value:
        return value[name]
    for step in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value
