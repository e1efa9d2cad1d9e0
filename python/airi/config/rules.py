"""`policies` and `content`: what callers may do, and what texts may hold. Data alone; others act on it."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from airi.config.values import FilePath, Name, Part, Text, mistaken

__all__ = ["ACTIONS", "BUILTIN_PATTERNS", "Content", "ContentRule", "Policies"]

Builtin = Literal["card", "iban", "ssn", "email", "api_key"]
BUILTIN_PATTERNS: tuple[Builtin, ...] = ("card", "iban", "ssn", "email", "api_key")
Act = Literal["block", "redact", "annotate", "audit"]
ACTIONS: tuple[Act, ...] = ("block", "redact", "annotate", "audit")

_MOST_WORDS = 100_000
_MOST_REGEXES = 1000


def _check_regex(pattern: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "it cannot be read"
        raise mistaken(f"a regular expression ({reason})") from None
    return pattern


Regex = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_check_regex)]


class Policies(Part):
    """What callers may do. Left out: everybody who is known may use every model."""

    engine: Literal["cedar"] = "cedar"
    """The language."""
    text: Annotated[str, Field(max_length=1 << 20)] | None = None
    """The policies."""
    file: FilePath | None = None
    """In place of text: the file that holds them."""


class ContentRule(Part):
    """Texts that match any of its patterns, and what is done about them."""

    foreign: ClassVar[dict[str, str]] = {
        "pii": "builtin",
        "regexes": "regex",
        "block_list": "words",
        "blocklist": "words",
        "words_file": "file",
    }

    name: Name
    """What answers, metrics and the audit call it."""
    builtin: tuple[Builtin, ...] = Field(default=(), strict=False)
    """Validated patterns that come with AIRI: card numbers, IBANs, SSNs, e-mail addresses, keys."""
    words: tuple[Text, ...] = Field(default=(), strict=False, max_length=_MOST_WORDS)
    """A block list."""
    file: FilePath | None = None
    """A file with a block list, one entry a line."""
    regex: tuple[Regex, ...] = Field(default=(), strict=False, max_length=_MOST_REGEXES)
    """Regular expressions."""
    judge: Name | None = None
    """A model that is asked about the whole text."""
    ignore_case: bool = True
    """Whether words and regexes match in upper and lower case alike."""
    whole_words: bool = True
    """Whether words match only where no letter or digit is beside them."""
    action: Act = "block"
    """Refuse the text or end the answer, put [NAME] in place of a match, say so beside the answer, or in the audit."""
    tenants: tuple[Name, ...] = Field(default=(), strict=False)
    """Whose texts; left out: everybody's."""
    models: tuple[Name, ...] = Field(default=(), strict=False)
    """Texts to and from which models; left out: all."""

    @property
    def has_patterns(self) -> bool:
        """Whether it looks for anything."""
        return bool(self.builtin or self.words or self.file or self.regex or self.judge)


class Content(Part):
    """Rules for texts."""

    input: tuple[ContentRule, ...] = Field(default=(), strict=False)
    """For prompts, before anything is spent on them."""
    output: tuple[ContentRule, ...] = Field(default=(), strict=False)
    """For answers, as they stream."""
