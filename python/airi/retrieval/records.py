"""Rows as users give them and get them back, and what is refused of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from airi.errors import RequestError

__all__ = ["Hit", "Row", "Snapshot", "StoredRow", "Written", "check_rows", "digest_of"]

MAX_ID = 512
OWN_FIELDS = ("id", "source", "time")
"""Fields of a row itself that filters know as they know its metadata."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One text of a collection. `id` is its caller's; another row with the same id replaces it."""

    id: str
    text: str
    metadata: dict[str, Any] = {}
    source: str = ""
    time: float | None = None
    """Seconds since 1970; left out, when it was written."""


class StoredRow(msgspec.Struct, frozen=True):
    """A row as it was written."""

    id: str
    text: str
    metadata: bytes
    """JSON."""
    source: str
    time: float


class Hit(msgspec.Struct, frozen=True):
    """A row that was found. A higher score is a better one; what it measures depends on the search."""

    score: float
    row: StoredRow
    """Shared with other hits: it is what the properties read, when they are asked."""

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def text(self) -> str:
        return self.row.text

    @property
    def metadata(self) -> dict[str, Any]:
        """One of the caller's own."""
        found: dict[str, Any] = msgspec.json.decode(self.row.metadata)
        return found

    @property
    def source(self) -> str:
        return self.row.source

    @property
    def time(self) -> float:
        """Seconds since 1970."""
        return self.row.time


class Snapshot(msgspec.Struct, frozen=True):
    """A moment of a collection: what was written up to `number`, and nothing later."""

    number: int
    time: float
    """Seconds since 1970, when that was written."""


class Written(msgspec.Struct, frozen=True):
    """What became of a batch."""

    snapshot: int
    """The moment at which it is there."""
    added: int
    replaced: int
    unchanged: int
    removed: int = 0


def _metadata_bytes(where: str, row: Row) -> bytes:
    """Metadata as JSON with ordered keys."""
    if not isinstance(row.metadata, Mapping):
        raise RequestError(f"{where}.metadata of row {row.id!r} must be an object", field=f"{where}.metadata")
    _check_value(where, row, "metadata", row.metadata)
    own = next((name for name in OWN_FIELDS if name in row.metadata), None)
    if own is not None:
        raise RequestError(
            f"{where}.metadata of row {row.id!r} has {own!r}, which is a field of rows themselves: give it there",
            field=f"{where}.metadata.{own}",
        )
    try:
        return msgspec.json.encode(row.metadata, order="sorted")
    except UnicodeEncodeError:
        raise RequestError(
            f"{where}.metadata of row {row.id!a} has half a surrogate pair, which is no text",
            field=f"{where}.metadata",
        ) from None


def _check_value(where: str, row: Row, path: str, value: Any) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, float) and math.isfinite(value):
        return
    if isinstance(value, int) and abs(value) <= 2**53:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not key or key.startswith("$"):
                raise RequestError(
                    f"{where}.{path} of row {row.id!r} has the key {key!r}; keys are texts that do not begin with $",
                    field=f"{where}.{path}",
                )
            _check_value(where, row, f"{path}.{key}", inner)
        return
    if isinstance(value, list | tuple):
        for inner in value:
            _check_value(where, row, path, inner)
        return
    raise RequestError(
        f"{where}.{path} of row {row.id!r} is {str(value)[:40]} ({type(value).__name__}); accepted are texts, true, "
        "false, null, lists, objects, finite numbers, whole ones up to 2^53",
        field=f"{where}.{path}",
    )


def check_rows(rows: Sequence[Row]) -> list[bytes]:
    """The metadata of each as JSON. Raises RequestError for the first row that cannot be kept, and names it."""
    seen: dict[str, int] = {}
    encoded = []
    for number, row in enumerate(rows):
        where = f"rows[{number}]"
        if not isinstance(row.id, str) or not 1 <= len(row.id) <= MAX_ID:
            shown = repr(row.id)[:40]
            raise RequestError(
                f"{where}.id is {shown}; it must be a text of 1 to {MAX_ID} characters", field=f"{where}.id"
            )
        if (first := seen.setdefault(row.id, number)) != number:
            raise RequestError(f"{where}.id {row.id!r} is that of rows[{first}], too", field=f"{where}.id")
        if not isinstance(row.text, str) or not row.text.strip():
            raise RequestError(f"{where}.text of row {row.id!r} is empty", field=f"{where}.text")
        if not isinstance(row.source, str):
            raise RequestError(f"{where}.source of row {row.id!r} must be a text", field=f"{where}.source")
        if row.time is not None and not (isinstance(row.time, int | float) and math.isfinite(row.time)):
            raise RequestError(
                f"{where}.time of row {row.id!r} is {row.time}; it must be seconds since 1970",
                field=f"{where}.time",
            )
        _check_encodable(where, row)
        encoded.append(_metadata_bytes(where, row))
    return encoded


def _check_encodable(where: str, row: Row) -> None:
    """Half of a surrogate pair is no character, and no database keeps it."""
    for name in ("id", "text", "source"):
        try:
            getattr(row, name).encode()
        except UnicodeEncodeError:
            raise RequestError(
                f"{where}.{name} of row {row.id!a} has half a surrogate pair, which is no text",
                field=f"{where}.{name}",
            ) from None


def digest_of(row: Row, metadata: bytes) -> bytes:
    """SHA-256 of what a row says: the same rows, written again, change nothing."""
    given = b"" if row.time is None else repr(float(row.time)).encode()
    parts = (row.text.encode(), metadata, row.source.encode(), given)
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()
