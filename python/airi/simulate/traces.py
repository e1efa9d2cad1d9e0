"""Traces of requests in files: what kind a file is, and its requests in order of arrival."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from airi.errors import ConfigError
from airi.simulate.batches import PIECE_ROWS, Batch, joined
from airi.simulate.rows import CsvRows, JsonRows, RowReader

__all__ = ["Trace"]

_GZIP = b"\x1f\x8b"


class Trace:
    """A file or a pipe of requests. Batches hold a few thousand rows each: a trace is never in memory as a whole.

    CSV with a header that names arrival (`TIMESTAMP` as a date, or `arrival_s` in seconds), input tokens
    (`ContextTokens`, `input_tokens`, `prompt_len`) and output tokens (`GeneratedTokens`, `output_tokens`,
    `output_len`), if it likes also tenants (`client`, `tenant`) and `priority`; or JSON lines with `timestamp` in
    milliseconds, `input_length`, `output_length` and perhaps `hash_ids`. Other columns are passed over.
    Rows may be out of order by up to 8,192 rows. Arrivals count from the first one. A pipe can be read once.
    """

    def __init__(self, path: str | os.PathLike[str], *, part_tokens: int = 512) -> None:
        """Opens the file to see what it is; raises ConfigError. `part_tokens`: of one of `hash_ids`."""
        self.path = Path(path)
        self.part_tokens = part_tokens
        self._tenants: list[str] = []
        self._pipe: tuple[TextIO, contextlib.ExitStack] | None = None
        with contextlib.ExitStack() as stack:
            lines = stack.enter_context(self._open())
            self._rows = self._reader(lines)
            if not self.path.is_file():
                self._pipe = lines, stack.pop_all()

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.path.name

    @property
    def format(self) -> str:
        """csv or jsonl."""
        return self._rows.format

    @property
    def tenant_names(self) -> dict[int, str]:
        """What the file calls its tenants, as far as it has been read, where that is no number."""
        return self._rows.tenant_names

    def batches(self) -> Iterator[Batch]:
        """All requests; raises ConfigError naming file, line, field, value and what is accepted."""
        origin: int | None = None
        for batch in self._in_order():
            if origin is None:
                origin = int(batch.arrival_us[0])
            yield batch.shifted(-origin)
        if origin is None:
            raise ConfigError(f"{self.path}: there are no requests in it", field="trace")

    def _in_order(self) -> Iterator[Batch]:
        held: Batch | None = None
        latest: int | None = None
        with self._after_header() as lines:
            for batch in self._rows.batches(lines, PIECE_ROWS):
                rows = batch if held is None else joined([held, batch])
                rows = rows.take(np.argsort(rows.arrival_us, kind="stable"))
                if latest is not None and rows.arrival_us[0] < latest:
                    raise ConfigError(
                        f"{self.path}: a request before line {self._rows.line} arrives earlier than one {PIECE_ROWS} "
                        "lines above; sort the file by arrival",
                        field="trace",
                    )
                cut = max(len(rows) - PIECE_ROWS, 0)
                if cut:
                    latest = int(rows.arrival_us[cut - 1])
                    yield rows.take(np.arange(cut))
                held = rows.take(np.arange(cut, len(rows)))
        if held is not None:
            yield held

    @contextlib.contextmanager
    def _after_header(self) -> Iterator[TextIO]:
        if self.path.is_file():
            with self._open() as lines:
                self._rows = self._reader(lines)
                yield lines
            return
        if self._pipe is None:
            raise ConfigError(f"{self.path}: a pipe can be read once; make it a file", field="trace")
        (lines, stack), self._pipe = self._pipe, None
        with stack:
            yield lines

    def _reader(self, lines: TextIO) -> RowReader:
        """The reader for what the first line that is not blank is; takes the lines up to there away."""
        number, first = 0, "\n"
        try:
            while first and not first.strip():
                number, first = number + 1, lines.readline()
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{self.path}: it cannot be read as text: {error}", field="trace") from None
        if not first:
            raise ConfigError(f"{self.path}: it is empty", field="trace")
        reader: RowReader
        if first.lstrip().startswith(("{", "[")):
            reader = JsonRows(self.path, first, number, part_tokens=self.part_tokens)
        else:
            reader = CsvRows(self.path, first, number)
        for name in self._tenants:
            reader.tenant(name)
        return reader

    def tenant(self, name: str) -> int:
        """The number of a tenant that the file may name; to be asked before its requests are read."""
        self._tenants.append(name)
        return self._rows.tenant(name)

    @contextlib.contextmanager
    def _open(self) -> Iterator[TextIO]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}", field="trace") from None
        with file:
            raw = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
