"""JSON lines: a document for each row."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airi.retrieval.ingest.documents import Document, Failure, clean
from airi.retrieval.ingest.plain import read_plain

__all__ = ["JsonlFields", "read_jsonl"]

_TAKEN = ("chunk", "id", "source", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlFields:
    """Which fields of a row are what."""

    text: str = "text"
    id: str = "id"
    """What tells rows apart; a row without it is known by its line."""
    title: str = "title"
    metadata: tuple[str, ...] | None = None
    """Fields that are kept; None: all others."""


def read_jsonl(data: bytes, source: str, fields: JsonlFields) -> Iterator[Document | Failure]:
    """A document, or a failure, for each line that is not empty."""
    lines: dict[str, int] = {}
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        row = _row(line)
        document = row if isinstance(row, str) else _document(row, source, number, fields)
        if isinstance(document, str):
            yield Failure(source=source, line=number, reason=document)
        elif (first := lines.setdefault(document.source, number)) != number:
            yield Failure(
                source=source,
                line=number,
                reason=f"{fields.id} is that of line {first}, too; it must be unique",
            )
        else:
            yield document


def _row(line: bytes) -> dict[str, Any] | str:
    """A line's object, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # NaN, numbers of a million digits, a million brackets
        return f"not JSON: {str(error).splitlines()[0][:100]}"
    return row if isinstance(row, dict) else f"must be an object, found {type(row).__name__}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _document(row: dict[str, Any], source: str, number: int, fields: JsonlFields) -> Document | str:
    text = row.get(fields.text)
    if not isinstance(text, str):
        found = "is missing" if fields.text not in row else f"is of type {type(text).__name__}"
        return f"field {fields.text!r} {found}; it must be a text"
    if not text.strip():
        return f"field {fields.text!r} is empty"
    own = row.get(fields.id)
    if own is not None and (isinstance(own, bool) or not isinstance(own, str | int) or own == ""):
        return f"field {fields.id!r} is {json.dumps(own)[:40]}; it must be a text or a whole number"
    title = row.get(fields.title)
    metadata = _metadata(row, fields, title_taken=isinstance(title, str))
    taken = next((name for name in _TAKEN if name in metadata), None)
    if taken is not None:
        return (
            f"field {taken!r} is what a chunk itself is described by; rename it, or name the metadata to keep"
        )
    name = f"{source}:{number}" if own is None else f"{source}#{clean(str(own))}"
    shown = " ".join(clean(title).split()) if isinstance(title, str) else ""
    return read_plain(text, name, title=shown, metadata=metadata)


def _metadata(row: Mapping[str, Any], fields: JsonlFields, *, title_taken: bool) -> dict[str, Any]:
    if fields.metadata is not None:
        return {name: row[name] for name in fields.metadata if name in row}
    own = {fields.text, fields.id} | ({fields.title} if title_taken else set())
    return {name: value for name, value in row.items() if name not in own}
