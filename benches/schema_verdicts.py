"""What forms of text say of the documents in a folder of schemas with tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airi.engine.constraints.grammars import grammar_of, new_matcher, refusal_of
from airi.errors import RequestError
from airi.structured_output import StructuredOutput

_PLAIN = "not|if|then|else|format|pattern|properties|required|items|contains|minimum|maximum|const|enum|type"
_KEYWORD = re.compile(
    rf"""(?:the\s)?(?:{_PLAIN})\b | .*["'`](?:{_PLAIN})["'`] | .*\$(?:ref|dynamicRef|recursiveRef)\b |
    .*\b(?:(?:one|any|all|multiple)Of|(?:min|max)(?:Properties|Items|Length|Contains)|exclusive(?:Min|Max)imum|
    patternProp\w+|propertyNames|(?:additional|unevaluated)(?:Properties|Items)|uniqueItems|prefixItems|dependen\w+)\b""",
    re.VERBOSE | re.DOTALL,
)
"""Keywords that are words of English, too, count where a reason begins with them or quotes them."""
_MAX_TRIES = 3000
"""Orders of keys that are tried for one document."""


@dataclass(frozen=True, slots=True)
class Case:
    """A schema and documents, each with whether it is valid."""

    name: str
    schema: Any
    tests: list[tuple[bool, Any]]


@dataclass(slots=True)
class Verdicts:
    """Counts over many cases."""

    schemas: int = 0
    taken: int = 0
    valid: int = 0
    valid_accepted: int = 0
    invalid: int = 0
    invalid_rejected: int = 0
    gave_up: int = 0
    """Documents at which a limit ended the matcher (an error, never a wrong text), or the search for an order."""
    refusals: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, bool, str]] = field(default_factory=list)
    """Names, whether the document is valid, and the document."""


def names_keyword(refusal: str) -> bool:
    """Whether a refusal names a keyword of JSON Schema beside the place."""
    reason = refusal.partition(": at ")[2].partition(": ")[2]
    return _KEYWORD.match(reason) is not None


def read_cases(folder: Path) -> Iterator[Case]:
    """Files of JSONSchemaBench's maskbench (one schema each) or of the JSON-Schema-Test-Suite (lists of them)."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = content if isinstance(content, list) else [content]
        for number, group in enumerate(groups):
            if isinstance(group, dict) and "schema" in group and "tests" in group:
                tests = [(bool(test["valid"]), test["data"]) for test in group["tests"]]
                yield Case(f"{path.relative_to(folder)}#{number}", group["schema"], tests)


class GaveUp(Exception):
    """A limit ended the matcher."""


class Writer:
    """Writes a document as a form may have it: in any order of keys that the form takes."""

    def __init__(self, tokens: Any, grammar: str, schema: Any = None) -> None:
        """Orders in which the `schema` has the keys are tried first."""
        self._matcher = new_matcher(tokens, grammar, "json_schema")
        self._tries = 0
        self._words = json.dumps(schema, ensure_ascii=False)
        self._respells = False
        self._in_schema_order = False

    def _place(self, item: tuple[str, Any]) -> int:
        at = self._words.find(json.dumps(item[0], ensure_ascii=False) + ":")
        return at if at >= 0 else len(self._words)

    def accepts(self, document: Any, *, valid: bool = True) -> bool:
        """Whether some order of its keys is a text of the form, of as many orders as are tried.

        Of a `valid` document whole numbers may also be written as such; raises GaveUp where not all orders were tried.
        """
        self._respells = valid
        exhausted = False
        for self._in_schema_order in (False, True):
            self._tries = 0
            if any(self._matcher.is_accepting() for _ in self._written(document)):
                return True
            exhausted |= self._tries <= _MAX_TRIES
        if valid and not exhausted:
            raise GaveUp
        return False

    def _take(self, text: str) -> bool:
        tokens = list(text.encode())
        taken = self._matcher.try_consume_tokens(tokens)
        if self._matcher.is_error() or (taken < len(tokens) and "TooComplex" in self._matcher.stop_reason()):
            raise GaveUp(self._matcher.get_error())
        if taken < len(tokens) and taken:
            self._matcher.rollback(taken)
        return taken == len(tokens)

    def _written(self, document: Any) -> Iterator[None]:
        """Yields with the matcher behind each way to write the document; takes it back afterwards."""
        if isinstance(document, dict):
            items = list(document.items())
            yield from self._object(sorted(items, key=self._place) if self._in_schema_order else items, "{")
        elif isinstance(document, list):
            yield from self._list(document, "[")
        else:
            yield from self._text(json.dumps(document, ensure_ascii=False))
            if self._respells and isinstance(document, float) and document.is_integer():
                yield from self._text(str(int(document)))  # the same number

    def _text(self, text: str) -> Iterator[None]:
        if self._take(text):
            yield
            self._matcher.rollback(len(text.encode()))

    def _list(self, items: list[Any], before: str) -> Iterator[None]:
        if not items:
            yield from self._text("[]" if before == "[" else "]")
            return
        for _ in self._text(before):
            for _ in self._written(items[0]):
                yield from self._list(items[1:], ", ")

    def _object(self, items: list[tuple[str, Any]], before: str) -> Iterator[None]:
        if not items:
            yield from self._text("{}" if before == "{" else "}")
            return
        for at, (key, value) in enumerate(items):
            self._tries += 1
            if self._tries > _MAX_TRIES:
                return
            for _ in self._text(f"{before}{json.dumps(key, ensure_ascii=False)}: "):
                for _ in self._written(value):
                    yield from self._object(items[:at] + items[at + 1 :], ", ")


def judge(case: Case, tokens: Any, verdicts: Verdicts) -> None:
    """Counts what becomes of a case."""
    verdicts.schemas += 1
    try:
        form = StructuredOutput(kind="json_schema", text=json.dumps(case.schema, ensure_ascii=False))
        grammar = grammar_of(form)
        matcher = new_matcher(tokens, grammar, "json_schema")
        if matcher.is_error():
            raise refusal_of(form, matcher.get_error())
    except RequestError as error:
        verdicts.refusals.append((case.name, str(error)))
        return
    verdicts.taken += 1
    for valid, document in case.tests:
        try:
            accepted = Writer(tokens, grammar, case.schema).accepts(document, valid=valid)
        except GaveUp:
            verdicts.gave_up += 1
            continue
        if valid:
            verdicts.valid += 1
            verdicts.valid_accepted += accepted
        else:
            verdicts.invalid += 1
            verdicts.invalid_rejected += not accepted
        if accepted != valid:
            verdicts.wrong.append((case.name, valid, json.dumps(document, ensure_ascii=False)[:200]))
