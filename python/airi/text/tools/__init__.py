"""Calls of functions in what models write: found as they are written, and forms that force them."""

from __future__ import annotations

from airi.text.tools._events import CallArguments, CallStart, Event, ToolParser
from airi.text.tools._formats import Function, ToolFormat, tool_format

__all__ = ["CallArguments", "CallStart", "Event", "Function", "ToolFormat", "ToolParser", "tool_format"]
