"""Amounts and times as people write them: 8GiB, 500MB, 30d, 2026-01-31T12:00:00Z."""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["moment", "parse_duration", "parse_size"]

_SIZE_UNITS = {"": 1} | {
    letter + binary: base**power
    for power, letter in enumerate("kmgt", start=1)
    for binary, base in (("", 10**3), ("i", 2**10))
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?([kmgt]i?)?b?", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9})([smhdw])")


def parse_size(text: str) -> int | None:
    """Bytes of 8GiB, 500MB or 4096; None for what is no size, and for less than one byte."""
    match = _SIZE.fullmatch(text.strip())
    size = 0 if match is None else int(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()])
    return size if size >= 1 else None


def parse_duration(text: str) -> int | None:
    """Seconds of 45s, 15m, 1h, 30d or 2w; None for what is no duration."""
    match = _DURATION.fullmatch(text.strip())
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def moment(at: float) -> str:
    """Seconds since 1970 as a moment of UTC, such as 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
