"""One method of one path, as the OpenAPI document shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airi.gateway.openai.schemas_common import ErrorResponse

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
    needs_body: bool = True
    """Whether there must be a request body, where there may be one."""
    events: type[Any] | None = None
    """Schema of the events of a streamed answer."""
    has_named_events: bool = False
    """Whether the events bear their type as a name, and no [DONE] follows them."""
    failure: type[Any] = ErrorResponse
    """Schema of errors."""
    query: tuple[str, ...] = ()
    """What may stand in the query."""
    errors: tuple[int, ...] = ()
