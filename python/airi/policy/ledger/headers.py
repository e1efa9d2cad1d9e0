"""What a response says of limits: `x-ratelimit-*` and `retry-after`, named and written as OpenAI does."""

from __future__ import annotations

from airi.policy.ledger.limits import MICRO, LimitName
from airi.policy.ledger.outcome import Refused, Remaining, Reservation

_PARALLEL_RETRY_S = 1
"""Places among parallel requests come back when requests end, which no ledger foresees: long before a lease does."""

_TOKEN_LIMITS = (LimitName.TOKENS, LimitName.INPUT_TOKENS, LimitName.OUTPUT_TOKENS)


def ratelimit_headers(outcome: Reservation | Refused) -> dict[str, str]:
    """The headers of a response: of each kind the limit that has the least left; none where none is set.

    For a refusal also `retry-after` in whole seconds, rounded up, unless waiting does not help.
    """
    headers = {}
    remaining = outcome.remaining_limits
    for kind, names in (("requests", (LimitName.REQUESTS,)), ("tokens", _TOKEN_LIMITS)):
        of_kind = [one for one in remaining if one.name in names]
        if not of_kind:
            continue
        tightest = min(of_kind, key=_tightness)
        headers[f"x-ratelimit-limit-{kind}"] = str(tightest.limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(tightest.remaining)
        headers[f"x-ratelimit-reset-{kind}"] = format_duration(tightest.reset_us or 0)
    if isinstance(outcome, Refused) and outcome.retry_after_us is not None:
        seconds = -(-outcome.retry_after_us // MICRO)
        if outcome.name is LimitName.PARALLEL:
            seconds = min(seconds, _PARALLEL_RETRY_S)
        headers["retry-after"] = str(seconds)
    return headers


def _tightness(one: Remaining) -> tuple[int, int]:
    return one.remaining, one.limit


def format_duration(us: int) -> str:
    """Microseconds as `1h2m3s`, `6m0s`, `1s`, `1.5s` or `120ms`, in whole milliseconds rounded up."""
    ms = -(-us // 1000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
