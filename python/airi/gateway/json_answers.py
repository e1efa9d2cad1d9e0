"""Content rules on answers that are JSON, or have calls of tools in them: they see what readers decode."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from airi.gateway.forms import Form
from airi.policy.content import ContentAction, ContentEvent, ContentFilter, ContentRules, Filtered
from airi.text.tools import CallArguments, CallStart, ToolFormat

__all__ = ["JsonAnswer", "JsonFilter", "json_answer"]

_HEX: Final = "[0-9a-fA-F]"
_HIGH: Final = rf"\\u[dD][89abAB]{_HEX}{{2}}"
_ESCAPE: Final = rf"{_HIGH}\\u[dD][c-fC-F]{_HEX}{{2}}|\\u{_HEX}{{4}}|\\[^u]"
_IN_STRING: Final = re.compile(rf'(?P<escape>{_ESCAPE})|[^"\\]+|\\|(?P<mark>")', re.S)
_BETWEEN: Final = re.compile(rf'(?P<escape>{_ESCAPE})|[^"\\{{}}\[\],<]+|[\\<]|(?P<mark>["{{}}\[\],])', re.S)
_UNFINISHED: Final = re.compile(
    rf"\\(?:u{_HEX}{{0,3}})?\Z|{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?\Z"
)
_TAG: Final = "<|python_tag|>"
_TEXT_LIMITS: Final = frozenset({"pattern", "format", "minLength", "maxLength"})
"""What a schema may ask of a string, so that no replacement can be sure to be one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """Where JSON stands in an answer."""

    whole: bool = False
    """The answer is JSON as a whole, unless it is calls."""
    enforced: bool = False
    """No other text may stand in its place."""
    schemas: tuple[Any, ...] = ()
    """What its values must be, as JSON or as text of it."""
    format: ToolFormat | None = None
    """How calls are written, where there may be some."""
    names: Collection[str] = ()
    """The functions that may be called."""

    def limits_texts(self, rules: ContentRules) -> bool:
        """Whether a schema accepts some string and not what rules make of it."""
        return any(_limits(_value(schema), rules) for schema in self.schemas)


def json_answer(form: Form | None) -> JsonAnswer | None:
    """Where JSON stands in an answer of a form; None where it is another text."""
    if form is None or form.structured.kind not in ("json_object", "json_schema"):
        return None
    schema = form.structured.text
    return JsonAnswer(whole=True, enforced=True, schemas=(schema,) if schema else ())


def _value(schema: Any) -> Any:
    return json.loads(schema) if isinstance(schema, str) else schema


def _limits(schema: Any, rules: ContentRules) -> bool:
    if isinstance(schema, list):
        return any(_limits(each, rules) for each in schema)
    if not isinstance(schema, dict):
        return False
    if any(isinstance(schema.get(key), str | int) for key in _TEXT_LIMITS):
        return True
    chosen = [text for key in ("const", "enum") if key in schema for text in _texts(schema[key])]
    if any(rules.check(text)[0].text != text for text in chosen):
        return True
    return any(_limits(each, rules) for each in schema.values())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _texts(value: Any) -> Iterator[str]:
    """Every string, key and number in JSON."""
    match value:
        case str():
            yield value
        case list():
            for each in value:
                yield from _texts(each)
        case dict():
            for key, each in value.items():
                yield key
                yield from _texts(each)
        case _:
            yield _dump(value)


class _Part:
    """One text of an answer: rules see it as it reads, and it is given out as it is written."""

    def __init__(self, start: int, replaced: Callable[[str], str | None]) -> None:
        """`start`: bytes before it. `replaced`: how a replacement is written here; None where none may stand."""
        self._start = start
        self._replaced = replaced
        self._written = bytearray()  # but for its first `_given` bytes
        self._given = 0
        self._new: list[str] = []  # as it reads, not scanned yet
        self._sizes = (0, 0)  # as it reads, as it is written
        self._runs = [(0, 0)]  # where both run byte by byte from
        self._covered = 0

    def add(self, written: str, read: str) -> None:
        """More of it."""
        data = written.encode("utf-8", "surrogatepass")
        self._written += data
        self._new.append(read)
        here = self._sizes
        size = len(data) if written == read else len(read.encode("utf-8", "surrogatepass"))
        self._sizes = here[0] + size, here[1] + len(data)
        if written != read:
            self._runs += [here, self._sizes]

    def scan(self, rules: ContentFilter, *, ended: bool) -> Filtered:
        """What may go out of it. Where nothing may stand in the place of a match, its event blocks."""
        passed = rules.push("".join(self._new))
        self._new.clear()
        found = [*passed.events, *(rules.finish().events if ended else ())]
        events: list[ContentEvent] = []
        out = b""
        for event in found:
            action, new = event.action, ""
            if action is ContentAction.REDACT:
                other = self._replaced(event.replacement)
                action, new = (ContentAction.BLOCK, "") if other is None else (action, other)
            start, end = self._at(event.start), self._at(event.end)
            events.append(
                replace(
                    event,
                    action=action,
                    replacement=new,
                    start=self._start + start,
                    end=self._start + end,
                )
            )
            if action.holds:
                out += self._take(start)
            if action is ContentAction.BLOCK:
                return Filtered(out.decode("utf-8", "surrogatepass"), tuple(events))
            if action is ContentAction.REDACT:
                if start >= self._covered:
                    out += new.encode("utf-8", "surrogatepass")
                self._take(end)
                self._covered = max(self._covered, end)
        out += self._take(self._at(rules.passed_bytes))
        return Filtered(out.decode("utf-8", "surrogatepass"), tuple(events))

    @property
    def passed_bytes(self) -> int:
        """Bytes of the answer that are decided."""
        return self._start + self._given

    def _at(self, read: int) -> int:
        """Where it is written what reads from a byte on."""
        if read == self._sizes[0]:
            return self._sizes[1]
        first, written = self._runs[bisect_right(self._runs, (read, self._sizes[1])) - 1]
        return written + read - first

    def _take(self, until: int) -> bytes:
        count = max(0, until - self._given)
        taken = bytes(self._written[:count])
        del self._written[:count]
        self._given += count
        return taken


class JsonFilter:
    """As `ContentFilter`, on every string, key and number of an answer by itself, and on what text is around calls.

    A replacement is written as JSON has strings. A key or a number has none, nor has a string where a schema tells what
    strings there may be, nor one that is JSON itself: what is redacted there is blocked.
    Held back are matches that are open, 11 characters of an escape and those of a mark at most; and all of an answer
    that is a list of Python calls, as their parser does.

    *Thread safety*: none.
    """

    def __init__(self, rules: ContentRules, answer: JsonAnswer) -> None:
        self._rules, self._answer = rules, answer
        self._filter = rules.filter()
        self._waiting = ""
        self._step: Callable[[str, int, bool], int] = self._start
        self._inside: list[str] = []  # the brackets that are open
        self._expects_key = self._is_key = False
        self._in_string = False
        self._opening = ""  # the first character of a string
        self._limits_texts: bool | None = None
        self._part: _Part | None = None
        self.passed_bytes = 0
        """Bytes of what came in that are decided."""
        self.blocked: ContentEvent | None = None
        """The match that ended the stream; nothing is given out from there on."""
        self._out: list[Filtered] = []

    def push(self, text: str) -> Filtered:
        """The next piece: the text that may go on, and what was found."""
        return self._go(text, ended=False)

    def finish(self) -> Filtered:
        """The end of the text: what was still held."""
        return self._go("", ended=True)

    def _go(self, text: str, *, ended: bool) -> Filtered:
        waiting, at = self._waiting + text, 0
        while self.blocked is None and at < len(waiting):
            step = self._step
            taken = step(waiting, at, ended)
            if taken == at and step == self._step:
                break
            at = taken
        self._waiting = waiting[at:]
        self._scan(ended=ended)
        out, self._out = self._out, []
        return Filtered("".join([each.text for each in out]), tuple(e for each in out for e in each.events))

    @property
    def _is_nested(self) -> bool:
        """Whether a string looks like arguments of a call that are written as one."""
        return self._answer.format is not None and self._opening == "{"

    def _add(self, written: str, read: str) -> None:
        if self._part is None:
            self._part = _Part(self.passed_bytes, self._replaced)
        self._part.add(written, read)

    def _scan(self, *, ended: bool) -> None:
        """Scans what has come of the part; `ended`: another one follows, which no match spans."""
        part = self._part
        if part is None or self.blocked is not None:
            return
        found = part.scan(self._filter, ended=ended)
        self._out.append(found)
        self.passed_bytes = part.passed_bytes
        self.blocked = next((e for e in found.events if e.action is ContentAction.BLOCK), None)
        if ended:
            self._filter.reset()
            self._part = None

    def _replaced(self, replacement: str) -> str | None:
        """A replacement as it is written where the text is; None where none may stand."""
        if self._step == self._text:
            return replacement
        if not self._in_string or self._is_key or self._is_nested:
            return None
        if self._limits_texts is None:
            self._limits_texts = self._answer.limits_texts(self._rules)
        return None if self._limits_texts else _dump(replacement)[1:-1]

    def _start(self, waiting: str, at: int, ended: bool) -> int:  # noqa: FBT001
        """Finds out what the answer is, once its beginning tells."""
        form = self._answer.format
        if self._answer.whole or form is None:
            self._step = self._json
        elif form.mark:
            self._step = self._text
        else:
            start = waiting.lstrip()
            calls = start.removeprefix(_TAG).lstrip()
            python = form.name == "pythonic" and calls.startswith("[")
            first = calls[1:].lstrip() if python else calls
            if not ended and (not first or _TAG.startswith(start)):
                return at
            if python and not first.startswith("{"):
                self._step = self._python
            else:
                self._step = self._json if calls.startswith(("{", "[")) else self._text
        return at

    def _text(self, waiting: str, at: int, ended: bool) -> int:  # noqa: FBT001
        """Text, up to the mark of a call."""
        mark = "" if self._answer.format is None else self._answer.format.mark
        found = waiting.find(mark, at) if mark else -1
        if found >= 0:
            end = found
        else:
            kept = 0 if ended else max(i for i in range(max(1, len(mark))) if waiting.endswith(mark[:i]))
            end = max(at, len(waiting) - kept)
        if end > at:
            self._add(waiting[at:end], waiting[at:end])
        if found >= 0:
            self._scan(ended=True)
            self._step = self._json
        return end

    def _json(self, waiting: str, at: int, ended: bool) -> int:  # noqa: FBT001
        """A piece of JSON. What is none is read alike, as parsers may find calls in it yet."""
        form = self._answer.format
        if form is not None and form.end_mark and not self._in_string and waiting[at] == "<":
            if waiting.startswith(form.end_mark, at):
                self._scan(ended=True)
                self._inside.clear()
                self._expects_key = False
                self._step = self._text
                return at
            if not ended and form.end_mark.startswith(waiting[at:]):
                return at
        if not ended and _UNFINISHED.match(waiting, at):
            return at
        found = (_IN_STRING if self._in_string else _BETWEEN).match(waiting, at)
        assert found is not None  # noqa: S101
        piece = found[0]
        if found["mark"] == '"':
            self._quote()
        else:
            if not self._in_string:
                self._bracket(piece)
            read = _unescaped(piece) if found["escape"] else piece
            self._opening = self._opening or read.lstrip()[:1]
            self._add(piece, read)
        return found.end()

    def _quote(self) -> None:
        """A string begins or ends. Quotes read as nothing."""
        if self._in_string:
            self._scan(ended=True)
            self._in_string = self._expects_key = False
            self._add('"', "")
        else:
            self._add('"', "")
            self._scan(ended=True)
            self._in_string, self._is_key, self._opening = True, self._expects_key, ""

    def _bracket(self, piece: str) -> None:
        """Follows what stands inside what, so that keys are known."""
        if piece in ("{", "["):
            self._inside.append(piece)
        elif piece in ("}", "]") and self._inside:
            self._inside.pop()
        if piece in ("{", "[", "}", "]", ","):
            self._expects_key = piece in ("{", ",") and self._inside[-1:] == ["{"]

    def _python(self, waiting: str, at: int, ended: bool) -> int:  # noqa: FBT001
        """A list of Python calls: all of it, as only then it is known what it says."""
        form = self._answer.format
        if form is None or not ended:
            return at
        parser = form.parser(self._answer.names)
        texts: list[str] = []
        for part in [*parser.push(waiting[at:]), *parser.finish()]:
            match part:
                case CallStart(name=name):
                    texts.append(name)
                case CallArguments(text=text):
                    texts += _texts(json.loads(text))
        if not texts:
            self._step = self._text
            return at
        end = self.passed_bytes + len(waiting[at:].encode("utf-8", "surrogatepass"))
        events: list[ContentEvent] = []
        for event in (event for text in texts for event in self._rules.check(text)[0].events):
            action = ContentAction.BLOCK if event.action.holds else event.action
            events.append(replace(event, action=action, start=self.passed_bytes, end=end))
            if action is ContentAction.BLOCK:
                self.blocked = events[-1]
                break
        self._out.append(Filtered("" if self.blocked else waiting[at:], tuple(events)))
        self.passed_bytes = self.passed_bytes if self.blocked else end
        return len(waiting)


def _unescaped(escape: str) -> str:
    try:
        text: str = json.loads(f'"{escape}"')
    except ValueError:
        return escape
    return text
