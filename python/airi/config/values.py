"""Kinds of values that a config is made of: each says in one phrase what it accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from airi._units import parse_duration, parse_size

__all__ = [
    "Bytes",
    "FilePath",
    "Name",
    "Part",
    "PositiveNumber",
    "Seconds",
    "Text",
    "Whole",
    "accepts",
    "address",
    "mistaken",
]

_MOST = 2**62
_MOST_SECONDS = 10 * 366 * 86400


class Part(BaseModel):
    """A mapping of a config. Frozen; unknown keys and values of other types are refused."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    later: ClassVar[tuple[str, ...]] = ()
    """Keys that have a meaning, but not in this version."""
    foreign: ClassVar[dict[str, str]] = {}
    """What others call keys that are called otherwise here."""


def mistaken(accepted: str) -> PydanticCustomError:
    """The error of a value that is not as it must be; `accepted` says how."""
    return PydanticCustomError("accepted", "{accepted}", {"accepted": accepted})


def accepts(accepted: str) -> WrapValidator:
    """Says of whatever is wrong with a value what is accepted in its place."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except (ValueError, TypeError):
            raise mistaken(accepted) from None

    return WrapValidator(check)


@dataclass(frozen=True, slots=True)
class Whole:
    """Metadata of an int: a whole number in these bounds."""

    least: int
    most: int = _MOST

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        phrase = f"a whole number of at least {self.least}"
        if self.most < _MOST:
            phrase = f"a whole number from {self.least} to {self.most}"

        def check(value: Any, handler: Callable[[Any], Any]) -> Any:
            try:
                return handler(value)
            except ValueError:
                raise mistaken(phrase) from None

        inner = core_schema.int_schema(strict=True, ge=self.least, le=self.most)
        return core_schema.no_info_wrap_validator_function(check, inner)


def address(*schemes: str, example: str, needs_host: bool = True) -> AfterValidator:
    """Metadata of a str: an address of one of some schemes."""

    def check(value: str) -> str:
        try:
            parts = urlsplit(value)
            _ = parts.port  # raises for what is no port
            usable = parts.scheme in schemes and bool(parts.hostname or (not needs_host and parts.path))
        except ValueError:
            usable = False
        if not usable or any(character.isspace() for character in value):
            raise mistaken(example)
        return value

    return AfterValidator(check)


def _read_size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _read_duration(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _or_text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": pattern}]}
    )


Bytes = Annotated[
    int,
    Field(ge=1, le=_MOST),
    BeforeValidator(_read_size),
    accepts("bytes, or a size such as 8GiB or 500MB"),
    _or_text(r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT]i?)?[bB]?$"),
]
Seconds = Annotated[
    int,
    Field(ge=1, le=_MOST_SECONDS),
    BeforeValidator(_read_duration),
    accepts("seconds, or a duration such as 45s, 15m, 1h or 30d"),
    _or_text(r"^[0-9]+[smhdw]$"),
]
PositiveNumber = Annotated[float, Field(gt=0, lt=1e15), accepts("a positive number")]
Text = Annotated[str, Field(min_length=1, max_length=4096), accepts("text")]
FilePath = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$"), accepts("the path of a file")
]
"""From the folder that the config is in."""
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"),
    accepts("a name of letters, digits and . _ : / @ -, which begins with a letter or digit"),
]
