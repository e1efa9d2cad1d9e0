"""Calls of functions in what models write: found as they are written, and forms that force them."""

from __future__ import annotations

from airi.text.tools._events import CallArguments, CallStart, Event, ToolParser
from airi.text.tools._formats import Function, ToolFormat, tool_format
from airi.text.tools._parsers import MarkerParser

__all__ = [
    "CallArguments",
    "CallStart",
    "Event",
    "Function",
    "MarkerParser",
    "ToolFormat",
    "ToolParser",
    "tool_format",
]
