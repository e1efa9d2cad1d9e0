"""What a model's answer turns out to be, piece by piece."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["CallArguments", "CallStart", "Event", "ToolParser"]


class CallStart(NamedTuple):
    """The model calls a function; calls are numbered from 0."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """More of the JSON text of a call's arguments."""

    call: int
    text: str


Event = str | CallStart | CallArguments
"""Text of the answer, or a part of a call."""


class ToolParser(Protocol):
    """Finds the calls in one answer.

    *Invariant*: what is no part of a call comes out as text, in order and unchanged but for white space around calls.
    """

    def push(self, text: str) -> list[Event]:
        """What is now certain, where `text` comes next."""
        ...

    def finish(self) -> list[Event]:
        """The rest, at the end of the answer."""
        ...
