"""What other servers say of a request that they refuse, as one line that may be shown to a client."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

__all__ = ["MOST_ERROR_BYTES", "Told", "told"]

MOST_ERROR_BYTES: Final = 64 << 10
"""Of a body that says what is wrong."""
_MOST_MESSAGE: Final = 400
_MOST_NAME: Final = 100


class Told(NamedTuple):
    """What a body says is wrong."""

    message: str
    """Empty where it does not say."""
    param: str | None
    code: str | None


def told(data: bytes, key: str | None) -> Told:
    """What a body says, in whatever form servers say it; `key` is in none of it, whole or cut."""

    def line(value: object, most: int) -> str | None:
        if not isinstance(value, str):
            return None
        if key:
            value = value.replace(key, "***")
        text = " ".join(value[: 4 * most].split())
        return "".join(each if each.isprintable() else "?" for each in text)[:most]

    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Told("", None, None)
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Told(line(error, _MOST_MESSAGE) or "", None, None)
    message = line(error.get("message", error.get("detail")), _MOST_MESSAGE)
    return Told(message or "", line(error.get("param"), _MOST_NAME), line(error.get("code"), _MOST_NAME))
