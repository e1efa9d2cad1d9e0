"""Built-in patterns of content rules: personal data with check digits, and credentials.

A pattern that begins with a look back finds nothing inside a longer word or number; what stays open while a stream runs
is bounded by its counts. Numbers may be grouped by spaces and dashes of any width, as models like to write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["DETECTORS", "DETECTOR_GROUPS", "Detector"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """A regular expression of `airi._core.guard`, and what its matches must pass beside it."""

    regex: str
    validator: Literal["NONE", "LUHN", "IBAN"] = "NONE"


_SEPARATOR: Final = r"[ \u00a0\u2009\u2010\u2011\u2012\u2013\u202f-]"
_GAP: Final = rf"(?: ?\r?\n|\.|{_SEPARATOR})"
# Latin, Greek and Cyrillic. Where words have no spaces between them, all before an address would be taken for its name.
_LETTERS: Final = r"\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"
_NOT_IN_WORD: Final = r"(?<![A-Za-z0-9_-])"
_END_OF_CODE: Final = r"(?![A-Za-z0-9])"
_BASE64URL: Final = "[A-Za-z0-9_-]"
_NEWLINE: Final = r"(?:\r?\n|\\r\\n|\\n)"

# Areas 000, 666 and 900 to 999, group 00 and serial 0000 were never given out.
_SSN_AREA: Final = r"(?:00[1-9]|0[1-9]\d|[1-578]\d\d|6[0-57-9]\d|66[0-57-9])"
_SSN_GROUP: Final = r"(?:0[1-9]|[1-9]\d)"
_SSN_SERIAL: Final = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"

DETECTORS: Final[dict[str, Detector]] = {
    "email": Detector(
        regex=rf"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9._%+'{_LETTERS}-]{{1,64}}"
        rf"@(?:[A-Za-z0-9{_LETTERS}-]{{1,63}}\.){{1,8}}[A-Za-z{_LETTERS}]{{2,24}}"
    ),
    # Dots and ends of lines only between groups of the usual sizes: else decimals and columns of numbers are cards.
    "payment_card": Detector(
        regex=rf"(?<!\d)(?:[2-6](?:{_SEPARATOR}?\d){{12,18}}"
        rf"|[2-6]\d{{3}}(?:{_GAP}\d{{4}}){{3}}(?:{_GAP}\d{{1,3}})?|3\d{{3}}{_GAP}\d{{6}}{_GAP}\d{{5}})(?!\d)",
        validator="LUHN",
    ),
    # All its letters are of one case: text that goes on in the other ends it at once.
    "iban": Detector(
        regex=rf"(?<![A-Za-z0-9])(?:[A-Z]{{2}}\d\d(?:{_SEPARATOR}?[A-Z0-9]){{11,30}}"
        rf"|[a-z]{{2}}\d\d(?:{_SEPARATOR}?[a-z0-9]){{11,30}}){_END_OF_CODE}",
        validator="IBAN",
    ),
    "us_ssn": Detector(regex=rf"(?<!\d){_SSN_AREA}{_SEPARATOR}{_SSN_GROUP}{_SEPARATOR}{_SSN_SERIAL}(?!\d)"),
    "aws_access_key": Detector(
        regex=rf"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|ANPA|ANVA|AIPA)[A-Z0-9]{{16}}{_END_OF_CODE}"
    ),
    "github_token": Detector(
        regex=r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"
    ),
    "gitlab_token": Detector(
        regex=rf"{_NOT_IN_WORD}glpat-{_BASE64URL}{{20,}}(?:\.[A-Za-z0-9]{{2}}\.[A-Za-z0-9]{{9}})?"
    ),
    "huggingface_token": Detector(regex=rf"{_NOT_IN_WORD}hf_[A-Za-z0-9]{{30,}}"),
    "google_api_key": Detector(regex=rf"{_NOT_IN_WORD}AIza{_BASE64URL}{{35}}"),
    "slack_token": Detector(regex=rf"{_NOT_IN_WORD}xox[abeoprs]-[A-Za-z0-9-]{{10,}}"),
    "stripe_key": Detector(regex=rf"{_NOT_IN_WORD}[rs]k_(?:live|test)_[A-Za-z0-9]{{16,}}"),
    # OpenAI, Anthropic, OpenRouter, AIRI and others.
    "sk_key": Detector(regex=rf"{_NOT_IN_WORD}sk-{_BASE64URL}{{20,}}"),
    "jwt": Detector(regex=rf"{_NOT_IN_WORD}eyJ{_BASE64URL}{{8,}}\.eyJ{_BASE64URL}{{8,}}\.{_BASE64URL}*"),
    "private_key": Detector(
        # With its lines, as far as they look like it, wherever they break off.
        regex=rf"-----BEGIN (?:[A-Z0-9]{{1,16}} ){{0,3}}PRIVATE KEY(?: BLOCK)?-----"
        rf"(?:{_NEWLINE}[ \t]{{0,8}}(?:[A-Za-z0-9+/=]{{1,80}}|[A-Za-z-]{{1,20}}: [^\\\n\r]{{1,80}})?)*"
        rf"(?:{_NEWLINE}[ \t]{{0,8}}-----END [A-Z0-9 ]{{1,60}}-----)?"
    ),
}

DETECTOR_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "pii": ("email", "payment_card", "iban", "us_ssn"),
    "credentials": (
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
    ),
}
