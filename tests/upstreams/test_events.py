"""Server-sent events in any pieces, and no more of them than is reasonable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.upstreams.events import EventReader, EventTooLargeError

LINES = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data:  c", b"data", b"", b"", b": ping", b"event: x", b"id: 3"]
    ),
    max_size=20,
)


def naive(lines: list[bytes]) -> list[bytes]:
    """As the standard says, over whole lines."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            data.append(value[1:] if value[:1] == b" " else value)
    return events


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_events_are_the_same_in_any_pieces(lines: list[bytes], end: bytes, sizes: list[int]) -> None:
    whole = b"".join(line + end for line in lines)
    reader, found, at, i = EventReader(), [], 0, 0
    while at < len(whole):
        size = sizes[i % len(sizes)]
        found += reader.push(whole[at : at + size])
        at, i = at + size, i + 1
    assert found == naive(lines)


@pytest.mark.parametrize("part", [b"x" * 7, b"data: xxx\n"])
def test_what_does_not_end_is_too_large(part: bytes) -> None:
    reader = EventReader(most_bytes=100)
    with pytest.raises(EventTooLargeError):
        sum(len(reader.push(part)) for _ in range(200))


def test_many_events_are_not() -> None:
    reader = EventReader(most_bytes=100)
    assert sum(len(reader.push(b"data: 12345\n\n")) for _ in range(1000)) == 1000
