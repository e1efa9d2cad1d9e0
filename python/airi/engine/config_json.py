"""Reads the JSON files of a checkpoint folder; every mistake is one line naming file, field and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airi.errors import CheckpointError, ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `CheckpointError` when it is missing or is not a JSON object."""
    value = _read(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON list; raises `CheckpointError` as `read_json`."""
    value = _read(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CheckpointError(f"{path} holds something else than a list of JSON objects")
    return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None


def read_json_if_present(path: Path) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.exists() else {}


class JsonFields:
    """Typed access to the fields of a JSON object; `null` counts as absent.

    Never returns a value of another type: raises `ConfigError` naming source, field, value and what is
    accepted.
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def fail(self, name: str, accepted: str) -> ConfigError:
        """The error to raise for a field whose value cannot be used."""
        return ConfigError(f"{self.source}: {name} is {self.values.get(name)!r}; accepted: {accepted}")

    def _missing(self, name: str) -> ConfigError:
        return ConfigError(f"{self.source}: field {name} is missing")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(name, f"an integer of at least {minimum}")
        return value

    def optional_integer(self, name: str, *, minimum: int = 0) -> int | None:
        return self.integer(name, minimum=minimum) if self.has(name) else None

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name)
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(name, "a number above 0")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self._missing(name)
            return default
        if not isinstance(value, str):
            raise self.fail(name, "a string")
        return value

    def strings(self, name: str) -> list[str]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(name, "a list of strings")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, or one integer; absent means none."""
        value = self.values.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise self.fail(name, "an integer or a list of integers")
        return tuple(items)

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
            raise self.fail(name, "a list of numbers")
        return tuple(float(item) for item in value)

    def nested(self, name: str) -> JsonFields | None:
        """The object stored under `name`, or None when it is absent or empty."""
        value = self.values.get(name)
        if not value:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, "an object")
        return JsonFields(value, f"{self.source}: {name}")
