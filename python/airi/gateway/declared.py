"""What a request declares of its answer: JSON, or calls of tools, and the JSON Schemas that they are to meet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from airi.gateway.forms import Form
from airi.text.tools import CallArguments, CallStart, ToolFormat

__all__ = ["Claim", "Declared", "Read", "declared_form"]


class Claim(NamedTuple):
    """That a text is JSON which meets a schema."""

    schema: str
    """As JSON."""
    text: str


class Read(NamedTuple):
    """An answer, by what was declared of it."""

    json: str | None
    """What was to be JSON as a whole; None where nothing was, or the answer is calls."""
    claims: tuple[Claim, ...]
    """All that has to hold; none where nothing was declared."""


_NEVER = Claim("false", "null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What holds of an answer that is as it was asked for, whether or not the engine enforces it."""

    answer: str | None = None
    """The schema of what is no call, as JSON; None where any text will do."""
    format: ToolFormat | None = None
    """How calls are written, where there may be some."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """By function, the schema of its arguments; None where any object will do."""
    several: bool = True
    """Whether calls behind the first one count; else they never reach the client."""
    must_call: bool = False
    """Whether there has to be a call."""
    _texts: dict[str, str] = field(default_factory=dict)
    """Of the schemas of arguments that were called for, by function: an answer may call one many times."""

    def read(self, text: str, most: int) -> Read | None:
        """What has to hold of this answer; None where its texts and schemas have more than `most` characters."""
        calls = self._calls(text, most)
        if calls is None:
            return None
        if calls:
            return Read(None, tuple(Claim(self._schema(name), arguments) for name, arguments in calls))
        if self.must_call:
            return Read(None, (_NEVER,))
        if self.answer is None:
            return Read(None, ())
        return None if len(self.answer) + len(text) > most else Read(text, (Claim(self.answer, text),))

    def _calls(self, text: str, most: int) -> list[tuple[str, str]] | None:
        """Names and arguments; None for too much."""
        if self.format is None:
            return []
        parser = self.format.parser(frozenset(self.parameters))
        names: list[str] = []
        arguments: list[str] = []
        for event in (*parser.push(text), *parser.finish()):
            match event:
                case CallStart(name=name):
                    if names and not self.several:
                        break
                    most -= len(self._schema(name))
                    names.append(name)
                    arguments.append("")
                case CallArguments(call=call, text=more):
                    most -= len(more)
                    arguments[call] += more
            if most < 0:
                return None
        return list(zip(names, arguments, strict=True))

    def _schema(self, name: str) -> str:
        if name not in self._texts:
            parameters = self.parameters.get(name)
            self._texts[name] = json.dumps({"type": "object"} if parameters is None else parameters)
        return self._texts[name]


def declared_form(form: Form | None) -> Declared | None:
    """What a form declares by itself; None where it is no JSON. Any JSON will do for `json_object`."""
    if form is None or form.structured.kind not in ("json_object", "json_schema"):
        return None
    return Declared(answer=form.structured.text or "true")
