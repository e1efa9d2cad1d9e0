"""Stands in for msgspec where it is not installed: the engine itself only makes and reads its records.

Nothing here encodes or decodes anything, so that measuring takes no package that a GPU image may lack.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from typing import Any, ClassVar

_NO_DEFAULT = object()


class _StructMeta(type):
    """Collects annotated fields and their defaults; class options such as `frozen` are taken and left alone."""

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any], **_options: Any) -> Any:
        fields: dict[str, Any] = {}
        for base in bases:
            fields |= getattr(base, "_fields_and_defaults", {})
        for field in space.get("__annotations__", {}):
            if not field.startswith("_"):
                fields[field] = space.pop(field, _NO_DEFAULT)
        space["_fields_and_defaults"] = fields
        return super().__new__(mcs, name, bases, space)

    def __init__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **_options: Any) -> None:
        super().__init__(name, bases, space)


class Struct(metaclass=_StructMeta):
    """A record: positional or named values, defaults copied."""

    _fields_and_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields_and_defaults
        given = dict(zip(fields, values, strict=False)) | named
        for field, default in fields.items():
            if field not in given and default is _NO_DEFAULT:
                raise TypeError(f"Missing required argument '{field}'")
            setattr(self, field, given[field] if field in given else copy.copy(default))
        if unknown := given.keys() - fields.keys():
            raise TypeError(f"Unexpected keyword argument '{min(unknown)}'")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def have_msgspec() -> None:
    """Has `import msgspec` work for what the engine needs of it."""
    if importlib.util.find_spec("msgspec") is None:
        sys.modules["msgspec"] = stand_in()


def stand_in() -> types.ModuleType:
    """The module with nothing but `Struct`."""
    module = types.ModuleType("msgspec")
    module.Struct = Struct  # type: ignore[attr-defined]
    return module
