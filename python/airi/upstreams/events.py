"""Server-sent events, read from bytes as they come, and never more of them than is reasonable."""

from __future__ import annotations

__all__ = ["MOST_EVENT_BYTES", "EventReader", "EventTooLargeError"]

MOST_EVENT_BYTES = 4 << 20


class EventTooLargeError(Exception):
    """A line, or an event, that does not end."""


class EventReader:
    """Gives the data of each event once all of it is there. Comments, names, ids and other fields are left out.

    *Thread safety*: none. *Invariant*: it holds no more than one event of at most `most_bytes`, and the last chunk.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most = most_bytes
        self._parts: list[bytes] = []  # of a line that has not ended
        self._data: list[bytes] = []
        self._size = 0  # of both
        self._after_cr = False

    def push(self, chunk: bytes) -> list[bytes]:
        """The events that a chunk completes. Raises EventTooLargeError."""
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        if chunk.endswith(b"\r"):  # a line end, or half of one
            self._after_cr = True
        events: list[bytes] = []
        if b"\n" in chunk or b"\r" in chunk:
            lines = (b"".join(self._parts) + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            self._parts = [lines.pop()]
            events = [event for line in lines if (event := self._line(line)) is not None]
            self._size = sum(map(len, self._data)) + len(self._parts[0])
        else:  # nothing is read twice, however small the chunks are
            self._parts.append(chunk)
            self._size += len(chunk)
        if self._size > self._most:
            raise EventTooLargeError
        return events

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
