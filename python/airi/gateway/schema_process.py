"""Judges JSON by JSON Schemas: `python -m airi.gateway.schema_process`, a process of its own beside a gateway.

Schemas are anybody's, and some make every validator work for years (a schema whose references branch doubles with each
of them). So a verdict has a second of CPU time, after which the kernel ends the process, and so much memory; whoever
asked reads the end of the stream. What a schema refers to elsewhere is never fetched, and patterns are matched in time
that is linear in the text; with a schema that asks for more of either nothing can be judged.

A line of JSON in, `[[schema, text], ...]`, gives a line out: true, false, or null where nobody can tell.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs

__all__ = ["main", "verdict"]

_CPU_S: Final = 1.0
_MEMORY: Final = 2 << 30
_PATTERN: Final = 1 << 20
"""Bytes of a compiled pattern."""


def main() -> None:
    """Answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks says when it is over
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)
        said = verdict(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def verdict(claims: list[tuple[str, str]]) -> bool | None:
    """Whether each text is JSON that meets its schema; None where one cannot be told and no other is wrong."""
    found = [_meets(schema, text) for schema, text in claims]
    if False in found:
        return False
    return None if None in found else True


def _meets(schema: str, text: str) -> bool | None:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        return None
    except ValueError:
        return False
    validator = _validator(schema)
    if validator is None:
        return None
    try:
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):
        return None


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    try:
        return jsonschema_rs.validator_for(
            json.loads(schema),
            validate_formats=True,
            retriever=_no_document,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN, dfa_size_limit=_PATTERN),
        )
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _no_document(uri: str) -> Any:
    raise ValueError(uri)


if __name__ == "__main__":
    main()
