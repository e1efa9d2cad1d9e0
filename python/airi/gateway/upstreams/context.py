"""What an upstream that is trusted is told of what a call is part of: its trace, its session, its release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from airi.gateway.releases import baggage_release

if TYPE_CHECKING:
    from airi.gateway.http import CallRecord
    from airi.gateway.models import ServedModel

__all__ = ["context_headers"]

_AS_THEY_CAME: Final = (b"traceparent", b"tracestate", b"x-airi-session")


def context_headers(record: CallRecord, model: ServedModel) -> list[tuple[str, str]]:
    """The headers that go along with a call to a model of an upstream: none where that is not trusted.

    Raises a 400 for a session's name that is empty or too long.
    """
    if model.upstream is None or not model.upstream.options.trusted:
        return []
    headers, members = [], []
    for name, value in record.sent:
        text = _text(value)
        if text is not None and name in _AS_THEY_CAME:
            headers.append((name.decode(), text))
        elif text is not None and name == b"baggage":
            members += [each for each in text.split(",") if each.strip() and baggage_release(each) is None]
    release = (record.draw or record.new_draw()).release_for(model.name)
    if release is not None:
        members.insert(0, f"airi-release={quote(release, safe='')}")
    if members:
        headers.append(("baggage", ",".join(members)))
    return headers


def _text(value: bytes) -> str | None:
    """A header's value; None where it is none that could be sent on as it came."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\t", " ").isprintable() else None
