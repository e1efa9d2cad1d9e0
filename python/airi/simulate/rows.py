"""Lines of trace files to columns of requests, with errors that name file, line, field and value."""

from __future__ import annotations

import csv
import datetime
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import msgspec
import numpy as np

from airi.errors import ConfigError
from airi.sampling_params import MAX_PRIORITY
from airi.simulate.batches import Batch

__all__ = ["CsvRows", "JsonRows", "RowReader"]

_MOST_TOKENS = 2**30
_MOST_SECONDS = 4e9
"""Far enough for seconds since 1970."""
_ID_BITS = 62
"""Of an id of a part; what has more loses the rest."""
_MICROSECOND = datetime.timedelta(microseconds=1)

ARRIVAL = ("timestamp", "arrival_s", "arrival_time", "arrived_at", "arrival")
INPUT = (
    "contexttokens",
    "input_tokens",
    "prompt_len",
    "input_length",
    "prompt_tokens",
    "request tokens",
    "num_prefill_tokens",
)
OUTPUT = (
    "generatedtokens",
    "output_tokens",
    "output_len",
    "output_length",
    "completion_tokens",
    "response tokens",
    "num_decode_tokens",
)
TENANT = ("client", "tenant", "client_id", "tenant_id", "user")
PRIORITY = ("priority",)


class _Columns:
    """Rows on their way to a Batch."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all rows."""
        self.arrival_us: list[int] = []
        self.tenant: list[int] = []
        self.band: list[int] = []
        self.input_tokens: list[int] = []
        self.output_tokens: list[int] = []
        self.part_start = [0]
        self.parts: list[int] = []

    def __len__(self) -> int:
        return len(self.arrival_us)

    def batch(self) -> Batch:
        return Batch(
            arrival_us=np.array(self.arrival_us, np.int64),
            tenant=np.array(self.tenant, np.int64),
            band=np.array(self.band, np.int32),
            input_tokens=np.array(self.input_tokens, np.int32),
            output_tokens=np.array(self.output_tokens, np.int32),
            part_start=np.array(self.part_start, np.int64),
            parts=np.array(self.parts, np.int64),
        )


class RowReader(ABC):
    """Reads the lines of one file, after its first that is not blank. `line` is the number of the one read last."""

    format = ""

    def __init__(self, path: Path, line: int) -> None:
        self.path = path
        self.line = line
        self.tenant_names: dict[int, str] = {}
        self._tenants: dict[str, int] = {}

    @abstractmethod
    def rows(self, lines: TextIO, out: _Columns) -> Iterator[None]:
        """Appends one request to `out` before each yield."""

    def batches(self, lines: TextIO, rows: int) -> Iterator[Batch]:
        """All requests, `rows` in each batch but the last."""
        out = _Columns()
        try:
            for _ in self.rows(lines, out):
                if len(out) >= rows:
                    yield out.batch()
                    out.clear()
        except (UnicodeDecodeError, OSError, EOFError, zlib.error, csv.Error) as error:
            raise ConfigError(f"{self.path} line {self.line + 1}: {error}", field="trace") from None
        if len(out):
            yield out.batch()

    def fail(self, field: str, value: object, accepted: str) -> NoReturn:
        """Raises ConfigError for a value of the present line."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ConfigError(
            f"{self.path} line {self.line}: {field} is {shown}; accepted: {accepted}", field=field
        )

    def tenant(self, name: str) -> int:
        """The number of a tenant: the name itself where it is one."""
        known = self._tenants.get(name)
        if known is None:
            known = self._tenants[name] = self._number(name.strip())
        return known

    def _number(self, name: str) -> int:
        if name in self._tenants:
            return self._tenants[name]
        number = int(name) if name.isdecimal() and len(name) <= 15 else None
        if number is None or number in self.tenant_names:
            number = 2**50 + len(self.tenant_names)
            self.tenant_names[number] = name
        self._tenants[name] = number
        return number

    def band(self, field: str, priority: int) -> int:
        """The core's band of a priority."""
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            self.fail(field, priority, f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
        return MAX_PRIORITY - priority


class CsvRows(RowReader):
    """Values between commas, semicolons or tabs, under a header with one of several names for each column."""

    format = "csv"

    def __init__(self, path: Path, header: str, line: int = 1) -> None:
        super().__init__(path, line)
        self._delimiter = next((mark for mark in ",;\t" if mark in header), ",")
        names = next(csv.reader([header], delimiter=self._delimiter), [])
        self._names = [name.strip() for name in names]
        self._arrival = self._column(ARRIVAL)
        self._input = self._column(INPUT)
        self._output = self._column(OUTPUT)
        self._tenant = self._find(TENANT)
        self._priority = self._find(PRIORITY)
        self._clock: Callable[[str], int] | None = None

    def _find(self, accepted: Sequence[str]) -> int | None:
        lower = [name.lower() for name in self._names]
        return next((lower.index(name) for name in accepted if name in lower), None)

    def _column(self, accepted: Sequence[str]) -> int:
        found = self._find(accepted)
        if found is None:
            self.fail("header", ",".join(self._names), f"a column named one of {', '.join(accepted)}")
        return found

    def rows(self, lines: TextIO, out: _Columns) -> Iterator[None]:
        reader = csv.reader(lines, delimiter=self._delimiter)
        least = max(self._arrival, self._input, self._output, self._tenant or 0, self._priority or 0) + 1
        header = self.line
        for row in reader:
            self.line = header + reader.line_num
            if len(row) < least:
                text = self._delimiter.join(row)
                if not text.strip():
                    continue
                self.fail("line", text, f"{len(self._names)} values, as in the header")
            arrival, tokens, output = row[self._arrival], row[self._input], row[self._output]
            clock = self._clock or self._choose_clock(arrival)
            out.arrival_us.append(clock(arrival))
            try:
                counts = int(tokens), int(output)
            except ValueError:
                counts = self._count(self._input, tokens), self._count(self._output, output)
            if not (0 <= counts[0] <= _MOST_TOKENS and 0 <= counts[1] <= _MOST_TOKENS):
                counts = self._count(self._input, tokens), self._count(self._output, output)
            out.input_tokens.append(counts[0])
            out.output_tokens.append(counts[1])
            out.tenant.append(0 if self._tenant is None else self.tenant(row[self._tenant]))
            out.band.append(MAX_PRIORITY if self._priority is None else self._band(row[self._priority]))
            out.part_start.append(0)
            yield

    def _count(self, column: int, text: str) -> int:
        """A number of tokens, also one that a spreadsheet has written as 12.0."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value.is_integer() and 0 <= value <= _MOST_TOKENS):
            self.fail(self._names[column], text, f"a whole number from 0 to {_MOST_TOKENS}")
        return int(value)

    def _band(self, text: str) -> int:
        try:
            priority = int(text)
        except ValueError:
            priority = MAX_PRIORITY + 1
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            self.fail("priority", text, f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
        return self.band("priority", priority)

    def _choose_clock(self, text: str) -> Callable[[str], int]:
        """Reads arrivals as the first one is written: in seconds, or as dates."""
        try:
            float(text)
        except ValueError:
            self._clock = self._date
        else:
            self._clock = self._seconds
        return self._clock

    def _seconds(self, text: str) -> int:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= _MOST_SECONDS:
            self.fail(self._names[self._arrival], text, f"seconds from 0 to {_MOST_SECONDS:g}")
        return round(seconds * 1e6)

    def _date(self, text: str) -> int:
        try:
            date = datetime.datetime.fromisoformat(text)
        except ValueError:
            self.fail(
                self._names[self._arrival], text, "seconds, or a date such as 2023-11-16 18:15:46.68059"
            )
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return (date - _EPOCH) // _MICROSECOND


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class JsonRows(RowReader):
    """One JSON object per line, with ids of the stretches of tokens that the prompt consists of."""

    format = "jsonl"

    def __init__(self, path: Path, first: str, line: int = 1, *, part_tokens: int) -> None:
        super().__init__(path, line)
        self._first = first
        self._part_tokens = part_tokens

    def rows(self, lines: TextIO, out: _Columns) -> Iterator[None]:
        decode = msgspec.json.Decoder().decode
        self.line -= 1
        for text in self._all(lines):
            self.line += 1
            if not text.strip():
                continue
            try:
                request = decode(text)
            except msgspec.DecodeError:
                self.fail("line", text.strip(), "a JSON object")
            if not isinstance(request, dict):
                self.fail("line", text.strip(), "a JSON object")
            self._append(request, out)
            yield

    def _all(self, lines: TextIO) -> Iterator[str]:
        yield self._first
        yield from lines

    def _append(self, request: dict[str, Any], out: _Columns) -> None:
        time = request.get("timestamp")
        if (
            isinstance(time, bool)
            or not isinstance(time, int | float)
            or not 0 <= time <= 1e3 * _MOST_SECONDS
        ):
            self.fail("timestamp", time, "milliseconds, at least 0")
        tokens = self._count(request, "input_length", _MOST_TOKENS)
        output = self._count(request, "output_length", _MOST_TOKENS)
        ids = request.get("hash_ids") or []
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            self.fail("hash_ids", ids, "a list of whole numbers from 0 to 2^64 - 1")
        if ids and max(ids) >> _ID_BITS:
            ids = [i & ((1 << _ID_BITS) - 1) for i in ids]
        if len(ids) > -(-tokens // self._part_tokens):
            most = f"at most {-(-tokens // self._part_tokens)} for {tokens} tokens in parts of {self._part_tokens}"
            self.fail("len(hash_ids)", len(ids), most)
        name = next((request[key] for key in TENANT if key in request), 0)
        priority = request.get("priority", 0)
        if type(priority) is not int:
            self.fail("priority", priority, f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}")
        out.arrival_us.append(round(time * 1000))
        out.tenant.append(self.tenant(str(name)))
        out.band.append(self.band("priority", priority))
        out.input_tokens.append(tokens)
        out.output_tokens.append(output)
        out.parts += ids
        out.part_start.append(len(out.parts))

    def _count(self, request: dict[str, Any], field: str, most: int) -> int:
        value = request.get(field)
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if type(whole) is not int or not 0 <= whole <= most:
            self.fail(field, value, f"a whole number from 0 to {most}")
        return whole
