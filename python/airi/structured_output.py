"""What form the text of a completion must have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

from airi.errors import RequestError

__all__ = ["MAX_CHOICES", "MAX_STRUCTURED_CHARACTERS", "StructuredKind", "StructuredOutput"]

StructuredKind = Literal["json_schema", "json_object", "regex", "grammar", "choice"]

MAX_STRUCTURED_CHARACTERS: Final = 512 * 1024
"""Of a schema, pattern, grammar or list of choices."""
MAX_CHOICES: Final = 4096
_KINDS: Final = get_args(StructuredKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """A form that the whole text has when it ends by itself; one of a wrong shape raises RequestError.

    The tokens that would leave the form are never sampled. Where it is over, the end of sequence is all that is left.
    What cannot be enforced exactly is refused when the request is added, by the keyword and its place in the schema.
    """

    kind: StructuredKind
    text: str = field(default="", repr=False)
    """json_schema: the schema as JSON. regex: the pattern, which the whole text matches. grammar: Lark's notation, from
    the rule `start`. choice: the texts, as a JSON list. json_object: empty."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise RequestError(f"structured: kind must be one of {', '.join(_KINDS)}", field="structured")
        if not isinstance(self.text, str):
            raise RequestError(
                f"structured: text must be a string, got {type(self.text).__name__}", field="structured"
            )
        if len(self.text) > MAX_STRUCTURED_CHARACTERS:
            raise RequestError(
                f"structured: the {self.kind} has {len(self.text)} characters; at most {MAX_STRUCTURED_CHARACTERS}",
                field="structured",
            )
        if not _is_unicode(self.text):
            raise RequestError(
                f"structured: the {self.kind} holds half of a surrogate pair", field="structured"
            )
        if self.kind == "json_object":
            if self.text:
                raise RequestError("structured: json_object takes no text", field="structured")
        elif not self.text:
            raise RequestError(f"structured: the {self.kind} is empty", field="structured")
        if self.kind == "choice":
            _check_choices(self.choices)

    @property
    def choices(self) -> list[str]:
        """The texts to choose from; RequestError where `text` is not a list of them."""
        try:
            choices = json.loads(self.text)
        except (ValueError, RecursionError):
            choices = None
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise RequestError("structured: choice must be a list of strings", field="structured")
        return choices

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Self:
        """JSON that a schema, as an object or as JSON text, accepts; its keys in the order of the schema."""
        if not isinstance(schema, Mapping | str):
            raise RequestError(
                f"structured: a JSON Schema is an object or JSON text, got {type(schema).__name__}",
                field="structured",
            )
        return cls(kind="json_schema", text=schema if isinstance(schema, str) else _json(schema))

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls(kind="json_object")

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that matches a regular expression as a whole."""
        return cls(kind="regex", text=pattern)

    @classmethod
    def grammar(cls, grammar: str) -> Self:
        """Text that a context-free grammar in Lark's notation derives."""
        return cls(kind="grammar", text=grammar)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Self:
        """One of these texts."""
        if isinstance(choices, str):
            raise RequestError("structured: choice must be a list of strings", field="structured")
        return cls(kind="choice", text=_json(list(choices)))


def _check_choices(choices: list[str]) -> None:
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(
            f"structured: choice has {len(choices)} entries; 1 to {MAX_CHOICES} are accepted",
            field="structured",
        )
    if not all(choices) or not all(map(_is_unicode, choices)):
        raise RequestError("structured: choice must hold non-empty strings of Unicode", field="structured")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(
            "structured: must be what JSON can hold, not nested too deeply", field="structured"
        ) from None
