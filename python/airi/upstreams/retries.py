"""What becomes of each time that an upstream is asked, and how long to wait before the same is asked again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

__all__ = ["LONGEST_WAIT_S", "Attempt", "backoff_s", "retry_after_s"]

LONGEST_WAIT_S = 30.0
"""An upstream that wants more than this is asked by the next call, not by this one."""
_FIRST_S = 0.25
_LONGEST_BACKOFF_S = 8.0


class Attempt(NamedTuple):
    """One time that an upstream was asked, and how that ended."""

    outcome: str
    """In one word, as metrics have it."""
    problem: str = ""
    waited_s: float = 0.0
    """Before the same was asked again."""


def backoff_s(attempt: int) -> float:
    """Seconds after attempt 0, 1, ...: doubled each time, and any part of it, so that callers do not come together."""
    return random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_S * 2.0 ** min(attempt, 16)))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What a response's headers ask for: milliseconds, seconds or a date; None where they say nothing usable."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < 1e9 else None
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return None
