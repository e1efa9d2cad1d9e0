"""Parsers of the forms in which models write calls."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any

from airi.text.tools._events import CallArguments, CallStart, Event
from airi.text.tools._object import CallObject

__all__ = ["JsonParser", "MarkerParser", "PythonicParser"]

_BETWEEN = " \t\r\n,;[]"
_NAME = re.compile(r"\s*([A-Za-z0-9_.\-]+)\s*(?:\[ARGS\]\s*)?\{")
_START_OF_NAME = re.compile(r"\s*[A-Za-z0-9_.\-]*\s*(?:\[[ARGS]{0,4}\]?\s*)?")


class _Text:
    """Text of the answer. White space waits until more follows, as there is none around calls."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def push(self, text: str) -> list[Event]:
        """What is certain to be shown."""
        whole = self._held + text
        shown = whole.rstrip()
        self._held = whole[len(shown) :]
        self._begun |= bool(shown)
        return [shown] if shown else []

    def drop(self) -> None:
        """A call follows."""
        self._held, self._begun = "", False

    def finish(self) -> list[Event]:
        """The white space at the end of an answer in words."""
        held, self._held = self._held, ""
        return [held] if held and self._begun else []


class MarkerParser:
    """Calls behind a mark, each an object or a list of objects: `<tool_call>{...}</tool_call>`, `[TOOL_CALLS][{...}]`.

    Without an end mark all that follows is calls, and a name may stand before its arguments: `[TOOL_CALLS]name{...}`,
    `[TOOL_CALLS]name[ARGS]{...}`. What does not read as a call is text, its mark included.
    """

    def __init__(self, begin: str, end: str | None = None) -> None:
        self._begin, self._end = begin, end
        self._text = _Text()
        self._waiting = ""
        self._inside = False
        self._raw = ""
        """Since the mark, or the last call."""
        self._object: CallObject | None = None
        self._count = 0

    def push(self, text: str) -> list[Event]:
        """As `ToolParser.push`."""
        self._waiting += text
        events: list[Event] = []
        goes_on = True
        while goes_on and self._waiting:
            if self._object is not None:
                goes_on = self._push_object(self._object, events)
            elif self._inside:
                goes_on = self._push_inside(events)
            else:
                goes_on = self._push_outside(events)
        return events

    def finish(self) -> list[Event]:
        """As `ToolParser.finish`."""
        events: list[Event] = []
        unfinished = self._object is not None and not self._object.started
        if unfinished or (self._inside and self._waiting.strip(_BETWEEN)):
            self._give_up(events)
        if not self._inside:
            events += self._text.push(self._waiting)
        self._waiting = ""
        return events + self._text.finish()

    def _push_outside(self, events: list[Event]) -> bool:
        at = self._waiting.find(self._begin)
        if at < 0:
            kept = _num_common(self._waiting, self._begin)
            events += self._text.push(self._waiting[: len(self._waiting) - kept])
            self._waiting = self._waiting[len(self._waiting) - kept :]
            return False
        events += self._text.push(self._waiting[:at])
        self._waiting = self._waiting[at + len(self._begin) :]
        self._inside, self._raw = True, self._begin
        return True

    def _push_inside(self, events: list[Event]) -> bool:
        start = self._waiting.lstrip(" \t\r\n,;")
        for mark in (self._begin, self._end):
            if mark is not None and start.startswith(mark):
                self._waiting = start[len(mark) :]
                self._inside = mark == self._begin
                return True
            if mark is not None and mark.startswith(start):
                return False  # also where there is nothing yet
        if start[0] in "[]":
            self._raw += self._waiting[: len(self._waiting) - len(start) + 1]
            self._waiting = start[1:]
            return True
        return self._begin_object(start, events)

    def _begin_object(self, start: str, events: list[Event]) -> bool:
        name = None
        if start[0] != "{":
            found = _NAME.match(start) if self._end is None else None
            if found is None:
                if self._end is None and _START_OF_NAME.fullmatch(start):
                    return False
                self._give_up(events)
                return True
            name, start = found[1], start[found.end() - 1 :]
        self._raw += self._waiting[: len(self._waiting) - len(start)]
        self._waiting = start
        self._object = CallObject(self._count, name=name)
        return True

    def _push_object(self, call: CallObject, events: list[Event]) -> bool:
        found, taken = call.push(self._waiting)
        self._waiting = self._waiting[taken:]
        if found:
            self._text.drop()
            events += found
        if call.has_failed and not call.started:
            self._give_up(events)
        elif call.is_over or call.has_failed:
            self._object, self._raw = None, ""
            self._count += 1
        return True

    def _give_up(self, events: list[Event]) -> None:
        """What was taken for a call is text."""
        taken = self._raw + (self._object.text if self._object is not None else "")
        self._inside, self._object, self._raw = False, None, ""
        events += self._text.push(taken)


class JsonParser:
    """Answers that are calls as a whole: an object, several with `;` between them, or a list of objects.

    An object is a call where its name is one of the functions; else the answer is text.
    """

    def __init__(self, names: Collection[str], mark: str | None = None) -> None:
        """`mark` may stand before the calls."""
        self._names = names
        self._mark = mark
        self._text: _Text | None = None
        self._object: CallObject | None = None
        self._raw = ""
        self._waiting = ""
        self._count = 0

    def push(self, text: str) -> list[Event]:
        """As `ToolParser.push`."""
        if self._text is not None:
            return self._text.push(text)
        self._waiting += text
        events: list[Event] = []
        while self._waiting and self._text is None:
            if self._object is not None:
                self._push_object(self._object, events)
            elif not self._begin_object(events):
                break
        return events

    def finish(self) -> list[Event]:
        """As `ToolParser.finish`."""
        events: list[Event] = []
        is_call = self._object is not None and self._object.started
        left = self._object is not None or self._waiting.strip(_BETWEEN)
        if self._text is None and left and not is_call:
            self._give_up(events)
        return events + (self._text.finish() if self._text is not None else [])

    def _begin_object(self, events: list[Event]) -> bool:
        start = self._waiting.lstrip(_BETWEEN if self._count or self._raw else " \t\r\n[")
        if not start or (self._mark is not None and self._mark.startswith(start)):
            return False
        if self._mark is not None and start.startswith(self._mark):
            self._raw += self._mark
            self._waiting = start[len(self._mark) :]
            return True
        if start[0] != "{":
            self._give_up(events)
            return False
        self._raw += self._waiting[: len(self._waiting) - len(start)]
        self._waiting = start
        self._object = CallObject(self._count, self._names)
        return True

    def _push_object(self, call: CallObject, events: list[Event]) -> None:
        found, taken = call.push(self._waiting)
        self._waiting = self._waiting[taken:]
        events += found
        if call.has_failed and not call.started:
            self._give_up(events)
        elif call.is_over or call.has_failed:
            self._object, self._raw = None, ""
            self._count += 1

    def _give_up(self, events: list[Event]) -> None:
        taken = self._raw + (self._object.text if self._object is not None else "") + self._waiting
        self._object, self._raw, self._waiting = None, "", ""
        self._text = _Text()
        events += self._text.push(taken)


class PythonicParser:
    """Answers that are a list of Python calls as a whole: `[look(city="Ulm", days=3), other()]`.

    Calls come out together, when the list has ended; values are what JSON can hold.
    """

    def __init__(self, names: Collection[str], mark: str | None = None) -> None:
        """`mark` may stand before the list."""
        self._names = names
        self._mark = mark
        self._waiting = ""
        self._text: _Text | None = None

    def push(self, text: str) -> list[Event]:
        """As `ToolParser.push`."""
        if self._text is not None:
            return self._text.push(text)
        self._waiting += text
        start = self._list()
        if not start or start[0] == "[" or (self._mark is not None and self._mark.startswith(start)):
            return []
        self._text = _Text()
        return self._text.push(self._waiting)

    def finish(self) -> list[Event]:
        """As `ToolParser.finish`."""
        if self._text is not None:
            return self._text.finish()
        calls = _python_calls(self._list().strip(), self._names)
        if not calls:
            return [self._waiting] if self._waiting.strip() else []
        return [
            event
            for index, (name, arguments) in enumerate(calls)
            for event in (CallStart(index, name), CallArguments(index, arguments))
        ]

    def _list(self) -> str:
        start = self._waiting.lstrip()
        return start.removeprefix(self._mark).lstrip() if self._mark is not None else start


def _python_calls(text: str, names: Collection[str]) -> list[tuple[str, str]]:
    """Names and JSON arguments of a list of calls; none where it is not one."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    if not isinstance(tree, ast.List) or not tree.elts:
        return []
    calls = []
    for node in tree.elts:
        if not isinstance(node, ast.Call) or node.args or ast.unparse(node.func) not in names:
            return []
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            try:
                arguments[keyword.arg or ""] = ast.literal_eval(keyword.value)
            except (ValueError, RecursionError):
                return []
        try:
            calls.append((ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False)))
        except (TypeError, ValueError):
            return []
    return calls


def _num_common(text: str, mark: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
