"""One method of one path, as the OpenAPI document shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Operation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a route takes and gives."""

    path: str
    method: str
    name: str
    summary: str
    response: type[Any] | None = None
    request: type[Any] | None = None
    events: type[Any] | None = None
    """Schema of the events of a streamed answer."""
    query: tuple[str, ...] = ()
    """What may stand in the query."""
    errors: tuple[int, ...] = ()
