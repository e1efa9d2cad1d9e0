"""One call as a JSON object, read while it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import Enum, auto

from airi.text.tools._events import CallArguments, CallStart, Event

__all__ = ["CallObject"]

_PLAIN = re.compile(r'[^"\\]+')
_SPACE = " \t\r\n"
_NAME = "name"
_ARGUMENTS = ("arguments", "parameters")


class _At(Enum):
    """What comes next in the object, at its own level."""

    START = auto()
    """its brace"""
    KEY = auto()
    """a key, or its end"""
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    COMMA = auto()
    """a comma, or its end"""
    END = auto()
    """nothing: it has ended"""
    FAILED = auto()
    """nothing: it is no call"""


class CallObject:
    """Takes `{"name": ..., "arguments": {...}}` apart: the name once it is there, then the arguments as they come.

    Keys may come in any order, and others beside them; `parameters` is another word for arguments. Arguments that are a
    string have their JSON in it.
    *Invariant*: what comes out begins with the name.
    """

    def __init__(self, index: int, names: Collection[str] | None = None, *, name: str | None = None) -> None:
        """`names`: what functions there are, where an object with another name is no call.

        `name`: where it stood before the object, which then is the arguments alone.
        """
        self.text = ""
        """All that was taken."""
        self.started = False
        """Whether anything has come out."""
        self._index = index
        self._names = names
        self._at = _At.START
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._key = ""
        self._value = ""
        self._ends_with_value = False
        self._name = name
        self._ready = ""
        """Of the arguments: known, and not given out yet."""
        self._has_arguments = False
        if name is not None:
            self._key, self._at = _ARGUMENTS[0], _At.VALUE
            self._ends_with_value = True

    @property
    def is_over(self) -> bool:
        """Whether the object has ended."""
        return self._at is _At.END

    @property
    def has_failed(self) -> bool:
        """Whether this is no call."""
        return self._at is _At.FAILED

    def push(self, text: str) -> tuple[list[Event], int]:
        """What is now certain, and how many characters of `text` belong to the object."""
        taken = 0
        while taken < len(text) and self._at not in (_At.END, _At.FAILED):
            run = _PLAIN.match(text, taken) if self._in_string and not self._escaped else None
            piece = run[0] if run else text[taken]
            self._take(piece)
            taken += len(piece)
        self.text += text[:taken]
        return self._give(), taken

    def _give(self) -> list[Event]:
        if self._name is None or self.has_failed:
            return []
        events: list[Event] = []
        if not self.started:
            self.started = True
            events.append(CallStart(self._index, self._name))
        if self.is_over and not self._has_arguments:
            self._ready, self._has_arguments = "{}", True
        if self._ready:
            events.append(CallArguments(self._index, self._ready))
            self._ready = ""
        return events

    def _take(self, piece: str) -> None:
        match self._at:
            case _At.IN_KEY:
                self._key += piece
                if self._ends_string(piece):
                    self._key, self._at = _string(self._key), _At.COLON
            case _At.IN_VALUE:
                self._take_value(piece)
            case _ if piece in _SPACE:
                pass
            case _At.START:
                self._at = _At.KEY if piece == "{" else _At.FAILED
            case _At.KEY:
                self._key, self._in_string = piece, piece == '"'
                self._at = _At.IN_KEY if piece == '"' else self._end(piece)
            case _At.COLON:
                self._at = _At.VALUE if piece == ":" else _At.FAILED
            case _At.VALUE:
                self._at, self._value, self._depth = _At.IN_VALUE, "", 0
                self._take_value(piece)
            case _At.COMMA:
                self._at = _At.KEY if piece == "," else self._end(piece)

    def _take_value(self, piece: str) -> None:
        if self._in_string:
            self._add(piece)
            if self._ends_string(piece) and not self._depth:
                self._finish_value()
        elif not self._depth and piece in ",}":
            self._finish_value()
            self._take(piece)
        else:
            if piece == '"':
                self._in_string = True
            elif piece in "{[":
                self._depth += 1
            elif piece in "}]":
                self._depth -= 1
            self._add(piece)
            if piece in "}]" and not self._depth:
                self._finish_value()

    def _add(self, piece: str) -> None:
        self._value += piece
        if self._key in _ARGUMENTS and self._value[0] != '"':
            self._has_arguments = True
            self._ready += piece

    def _finish_value(self) -> None:
        self._at = _At.END if self._ends_with_value else _At.COMMA
        if self._key == _NAME:
            self._name = _string(self._value)
            if not self._name or (self._names is not None and self._name not in self._names):
                self._at = _At.FAILED
        elif self._key in _ARGUMENTS and self._value[0] == '"':
            self._has_arguments = True
            self._ready += _string(self._value)

    def _ends_string(self, piece: str) -> bool:
        """Follows a string; whether `piece` is its closing quote."""
        if self._escaped:
            self._escaped = False
        elif piece == "\\":
            self._escaped = True
        elif piece == '"':
            self._in_string = False
            return True
        return False

    def _end(self, piece: str) -> _At:
        """Behind its closing brace."""
        return _At.END if piece == "}" and self._name is not None else _At.FAILED


def _string(text: str) -> str:
    """The string that JSON text is; empty where it is none."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
