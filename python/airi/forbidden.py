"""Texts that may never be generated, as every layer names them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi._core import guard

__all__ = ["ForbiddenPattern", "ForbiddenSet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForbiddenPattern:
    """A regular expression of the subset in csrc/guard/regex_parser.h."""

    name: str
    """What errors call it."""
    regex: str
    ignore_case: bool = False
    """ASCII letters."""
    word_boundary: bool = False
    """Whether it neither follows nor precedes a letter, a digit or an underscore of ASCII."""


@dataclass(frozen=True, slots=True)
class ForbiddenSet:
    """Patterns of which no text may have a match. The same ones in the same order are the same set everywhere."""

    patterns: tuple[ForbiddenPattern, ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the patterns, as JSON: what requests name the set by."""
        return hashlib.sha256(json.dumps([astuple(each) for each in self.patterns]).encode()).digest()

    def automaton(self) -> guard.Automaton:
        """The patterns as tables. Raises ConfigError in one line that names the pattern which is not accepted."""
        from airi._core import guard

        try:
            return guard.Automaton(
                [
                    guard.Pattern(
                        each.regex,
                        name=each.name,
                        ignore_case=each.ignore_case,
                        word_boundary=each.word_boundary,
                    )
                    for each in self.patterns
                ]
            )
        except ValueError as error:
            raise ConfigError(f"forbidden texts: {error}", field="forbid") from None
