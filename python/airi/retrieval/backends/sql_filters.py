"""Filters as conditions of PostgreSQL over a jsonb column."""

from __future__ import annotations

import json
from typing import Any

from airi.retrieval.filters import And, Compare, Exists, Filter, In, Not

__all__ = ["Conditions"]

_OWN_COLUMNS = {"id": "r.id", "source": "r.source", "time": "r.time"}
_SYMBOLS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


class Conditions:
    """Writes conditions, and gathers the values that they refer to by number. No value is ever part of the SQL."""

    def __init__(self, arguments: list[Any]) -> None:
        self._arguments = arguments

    def of(self, wanted: Filter) -> str:
        """A condition that is true or false of every row, never null."""
        if isinstance(wanted, Not):
            return f"(NOT {self.of(wanted.part)})"
        if isinstance(wanted, In):
            return self._among(wanted)
        if isinstance(wanted, Compare):
            return self._compared(wanted)
        if isinstance(wanted, Exists):
            if wanted.field in _OWN_COLUMNS:
                return "true"
            return f"(COALESCE(jsonb_typeof({self._value(wanted.field)}), 'null') <> 'null')"
        joined = " AND " if isinstance(wanted, And) else " OR "
        return f"({joined.join(self.of(part) for part in wanted.parts) or 'true'})"

    def _add(self, value: Any, kind: str) -> str:
        self._arguments.append(value)
        return f"${len(self._arguments)}::{kind}"

    def _value(self, field: str) -> str:
        name, path = self._add(field, "text"), self._add(field.split("."), "text[]")
        return f"COALESCE(r.metadata -> {name}, r.metadata #> {path})"

    def _among(self, wanted: In) -> str:
        column = _OWN_COLUMNS.get(wanted.field)
        if column is not None:
            is_time = wanted.field == "time"
            fit = [v for v in wanted.values if isinstance(v, float if is_time else str)]
            return f"({column} = ANY({self._add(fit, 'float8[]' if is_time else 'text[]')}))"
        if not wanted.values:
            return "false"
        # A list contains each of its values, and a value itself.
        value = self._value(wanted.field)
        any_of = " OR ".join(f"{value} @> {self._add(json.dumps(v), 'jsonb')}" for v in wanted.values)
        return f"COALESCE({any_of}, false)"

    def _compared(self, wanted: Compare) -> str:
        symbol = _SYMBOLS[wanted.operator]
        column = _OWN_COLUMNS.get(wanted.field)
        if column is not None:
            if isinstance(wanted.value, str) == (wanted.field == "time"):
                return "false"
            if wanted.field == "time":
                return f"({column} {symbol} {self._add(wanted.value, 'float8')})"
            return f'({column} COLLATE "C" {symbol} {self._add(wanted.value, "text")})'
        bound = self._add(json.dumps({"bound": wanted.value}), "jsonb")
        path = f"'$[*] ? (@ {symbol} $bound)'"
        return f"COALESCE(jsonb_path_exists({self._value(wanted.field)}, {path}, {bound}), false)"
