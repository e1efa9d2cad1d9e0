"""`policies` and `content`: what callers may do, and what texts may hold. Data alone; others act on it."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from airi.config.values import FilePath, Name, Part, Text, mistaken

__all__ = ["Act", "Content", "ContentRule", "Detector", "ForbidRule", "Policies"]

Detector = Literal[
    "pii",
    "credentials",
    "email",
    "payment_card",
    "iban",
    "us_ssn",
    "aws_access_key",
    "github_token",
    "gitlab_token",
    "huggingface_token",
    "google_api_key",
    "slack_token",
    "stripe_key",
    "sk_key",
    "jwt",
    "private_key",
]
"""What comes with AIRI; the first two are groups of the others."""
Act = Literal["block", "redact", "annotate", "audit"]

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


class _PatternRule(Part):
    """What texts are looked for, and whose."""

    foreign: ClassVar[dict[str, str]] = {
        "pii": "detectors",
        "builtin": "detectors",
        "regex": "regexes",
        "patterns": "regexes",
        "block_list": "words",
        "blocklist": "words",
        "words_file": "file",
    }

    name: Name
    """What answers, metrics and the audit call it."""
    detectors: tuple[Detector, ...] = Field(default=(), strict=False)
    """Validated patterns that come with AIRI, and groups of them: pii and credentials."""
    words: tuple[Text, ...] = Field(default=(), strict=False, max_length=_MOST_WORDS)
    """A block list; found whole, in upper and lower case alike."""
    file: FilePath | None = None
    """A file with a block list, one entry a line."""
    regexes: tuple[Regex, ...] = Field(default=(), strict=False, max_length=_MOST_REGEXES)
    """Regular expressions."""
    ignore_case: bool = False
    """Whether regexes match in upper and lower case alike."""
    tenants: tuple[Name, ...] = Field(default=(), strict=False)
    """Whose texts; left out: everybody's."""
    models: tuple[Name, ...] = Field(default=(), strict=False)
    """Texts to and from which models; left out: all."""

    @property
    def has_patterns(self) -> bool:
        """Whether it looks for anything."""
        return bool(self.detectors or self.words or self.file or self.regexes)


class ContentRule(_PatternRule):
    """Texts that match any of its patterns, and what is done about them."""

    judge: Name | None = None
    """A model that is asked about the whole text, beside the patterns. Where it may block or redact an answer, nothing
    of that answer goes out before its end, and it is replaced whole; prompts it may block, but not redact."""
    question: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """What the judge is asked; yes means unsafe. Left out: whether the text is harmful."""
    action: Act = "block"
    """Refuse the text or end the answer, replace the match, tell the client of it, or the audit alone."""
    replacement: Annotated[str, Field(max_length=256)] = "[REDACTED]"
    """What stands in place of a match that is redacted."""

    @property
    def has_patterns(self) -> bool:
        """Whether it looks for anything, or asks."""
        return super().has_patterns or self.judge is not None


class ForbidRule(_PatternRule):
    """Texts that are never generated: no token is sampled that would complete a match.

    That is about the characters of an answer as it is generated: not about their meaning, not about another spelling of
    the same, and not about what a client joins them with. Detectors with check digits cannot be asked for: pii,
    payment_card and iban.
    """


class Content(Part):
    """Rules for texts."""

    input: tuple[ContentRule, ...] = Field(default=(), strict=False)
    """For prompts, before anything is spent on them."""
    output: tuple[ContentRule, ...] = Field(default=(), strict=False)
    """For answers, as they stream."""
    forbid: tuple[ForbidRule, ...] = Field(default=(), strict=False)
    """What answers never hold: enforced while tokens are sampled, so that nothing is cut. Answers have certificates."""
