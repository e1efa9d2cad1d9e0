"""Conditions of rules in CEL, the Common Expression Language: compiled once, true or false of each request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from airi.errors import AiriError, ConfigError

__all__ = ["Condition", "ConditionError"]

_PLACE: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*)")
_UNDEFINED: Final = re.compile(r"Undefined variable or function: '([^']*)'")
_MOST_REASON: Final = 200


class ConditionError(AiriError):
    """A condition says nothing of a request: what it reads is not there, or of another kind. It quotes nothing."""

    code = "condition_failed"


class Condition:
    """One expression. Immutable; one serves any number of requests."""

    def __init__(self, text: str, example: Mapping[str, Any]) -> None:
        """`example`: of all that conditions may read. ConfigError has the line and column of a mistake."""
        import cel  # brings a command line of its own: only where there are conditions

        self.text = text
        try:
            self._program = cel.compile(text)
        except ValueError as error:
            raise ConfigError(_mistake(str(error)), field="when") from None
        try:
            self._program.execute(dict(example))
        except Exception as error:  # what is only missing in the example is no mistake
            unknown = _UNDEFINED.match(str(error))
            if unknown is not None:
                known = ", ".join(example)
                reason = f"{unknown[1]!r} is neither a function nor one of: {known}"
                raise ConfigError(reason, field="when") from None

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether it is true of a request. Raises ConditionError where it cannot be told."""
        try:
            value = self._program.execute(dict(facts))
        except Exception as error:  # its errors are built-in ones, whose text may have what a request says
            raise ConditionError(f"it cannot be evaluated: {type(error).__name__}") from None
        if not isinstance(value, bool):
            raise ConditionError(f"it gives a {type(value).__name__}, neither true nor false")
        return value


def _mistake(text: str) -> str:
    found = _PLACE.search(text)
    if found is None:
        return "it cannot be read"
    return f"line {found[1]}, column {found[2]}: {found[3][:_MOST_REASON]}"
