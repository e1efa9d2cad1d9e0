"""The forms in which models write calls, told apart by their chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from airi.text._tokenizer import Tokenizer
from airi.text.tools._events import ToolParser
from airi.text.tools._parsers import JsonParser, MarkerParser, PythonicParser

__all__ = ["Function", "ToolFormat", "tool_format"]

_PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What a call of it may look like."""

    name: str
    parameters: Any = None
    """JSON Schema of the arguments; None: there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes calls."""

    name: str
    parser: Callable[[Collection[str]], ToolParser]
    """Makes one for an answer, where these functions are declared."""
    arguments: str = "arguments"
    """The key of the arguments."""
    mark: str = ""
    """What tells calls from other text."""
    end_mark: str = ""
    """What stands behind them."""
    mark_id: int | None = None
    """Its token, where it is a special one."""
    before: str = ""
    """Before all calls, in Lark's notation, where `mark` is the mark; so are the following."""
    open: str = ""
    """Before each call."""
    close: str = ""
    between: str = '"\\n"'
    after: str = ""
    mark_ids: tuple[int, ...] = ()
    """Special tokens that a parser has to see."""

    def grammar(
        self, functions: Sequence[Function], *, several: bool, answer: str | None = None, text: bool = False
    ) -> str:
        """A form, in Lark's notation, of a call of one of the functions, or of `several`.

        The parameters' schemas are its first `%json` blocks, in order. `answer`: a schema of which JSON may stand
        instead of the calls. `text`: any text may stand instead of them, and where there is a mark around them.
        """
        between = "" if text and self.mark else self.between
        call = f"{self.open} body {self.close}"
        calls = (
            f"{self.before} call ({between} call)* {self.after}"
            if several
            else f"{self.before} call {self.after}"
        )
        lines = [
            f"start: {self._start(answer=answer is not None, text=text)}",
            f"calls: {calls}",
            f"call: {call}",
            "body: " + " | ".join(f"f{i}" for i in range(len(functions))),
        ]
        for i, function in enumerate(functions):
            head = '{"name": ' + json.dumps(function.name, ensure_ascii=False) + f', "{self.arguments}": '
            lines.append(f'f{i}: {_literal(head)} a{i} "}}"')
            lines.append(f"a{i}: %json {_schema(function.parameters)}")
        if answer is not None:
            lines.append(f"answer: %json {answer}")
        return "\n".join(lines + self._terminals(text=text))

    def _start(self, *, answer: bool, text: bool) -> str:
        calls = "calls TEXT? | TEXT?" if text and self.mark else "calls | TEXT?" if text else "calls"
        return f"{calls} | answer" if answer else calls

    def _terminals(self, *, text: bool) -> list[str]:
        """The mark, with the text before it where there may be some, and the text that has no call in it."""
        if not self.mark:
            return [r"TEXT: /\s*[^\s\[{](?s:.*)/"] if text else []
        if self.mark_id is not None:
            mark = f"<[{self.mark_id}]>"
            return [f"mark: TEXT? {mark}", "TEXT: /(?s:.+)/"] if text else [f"mark: {mark}"]
        if not text:
            return [f"mark: {_literal(self.mark)}"]
        return [
            f"mark[suffix={_literal(self.mark)}]: /(?s:.*)/",
            f"TEXT: /(?s:.+)/ & ~/(?s:.*){re.escape(self.mark)}(?s:.*)/",
        ]


def tool_format(tokenizer: Tokenizer) -> ToolFormat:
    """How the model of a tokenizer writes calls, as far as its chat template shows; plain JSON where it does not."""
    source = tokenizer.tool_template or ""
    if "[TOOL_CALLS]" in source:
        return _marked(tokenizer, "mistral", "[TOOL_CALLS]", None)
    if "<tool_call>" in source:
        return _marked(tokenizer, "hermes", "<tool_call>", "</tool_call>")
    tag = tokenizer.token_id(_PYTHON_TAG)
    mark_ids = () if tag is None else (tag,)
    if "[func_name1(" in source or "func_name1(params_name1=" in source:
        return ToolFormat(
            name="pythonic",
            parser=lambda names: _Either(names, None if tag is None else _PYTHON_TAG),
            before='"["',
            between='", "',
            after='"]"',
            mark_ids=mark_ids,
        )
    if tag is not None or '"parameters": dictionary' in source:
        return ToolFormat(
            name="llama3_json",
            parser=lambda names: JsonParser(names, _PYTHON_TAG),
            arguments="parameters",
            between='"; "',
            mark_ids=mark_ids,
        )
    return ToolFormat(name="json", parser=JsonParser, before='"["', between='", "', after='"]"')


def _marked(tokenizer: Tokenizer, name: str, begin: str, end: str | None) -> ToolFormat:
    marks = {mark: tokenizer.token_id(mark) for mark in (begin, end) if mark is not None}
    special = {mark: token for mark, token in marks.items() if token in tokenizer.special_ids}

    mark_ids = tuple(token for token in special.values() if token is not None)
    if end is None:
        return ToolFormat(
            name=name,
            parser=lambda _: MarkerParser(begin),
            mark=begin,
            mark_id=special.get(begin),
            before='mark "["',
            between='", "',
            after='"]"',
            mark_ids=mark_ids,
        )
    return ToolFormat(
        name=name,
        parser=lambda _: MarkerParser(begin, end),
        mark=begin,
        end_mark=end,
        mark_id=special.get(begin),
        open='mark "\\n"',
        close='"\\n" ' + (f"<[{special[end]}]>" if end in special else _literal(end)),
        mark_ids=mark_ids,
    )


class _Either:
    """Calls as Python, as the template asks for them, or as JSON, as they are forced; the beginning tells which."""

    def __init__(self, names: Collection[str], mark: str | None) -> None:
        self._python: ToolParser = PythonicParser(names, mark)
        self._json: ToolParser = JsonParser(names, mark)
        self._chosen: ToolParser | None = None
        self._waiting = ""

    def push(self, text: str) -> list[Any]:
        """As `ToolParser.push`."""
        if self._chosen is not None:
            return self._chosen.push(text)
        self._waiting += text
        start = self._waiting.lstrip()
        if start.startswith("["):
            start = start[1:].lstrip()
            if not start:
                return []
        if not start:
            return []
        self._chosen = self._json if start[0] == "{" else self._python
        return self._chosen.push(self._waiting)

    def finish(self) -> list[Any]:
        """As `ToolParser.finish`."""
        if self._chosen is None:
            return self._python.push(self._waiting) + self._python.finish()
        return self._chosen.finish()


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema(parameters: Any) -> str:
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    return json.dumps(parameters, ensure_ascii=False)
