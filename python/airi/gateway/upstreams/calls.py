"""An upstream's calls of tools as text that the gateway's own parser takes apart again.

So content rules read calls of any model alike, before anything of them goes out.
"""

from __future__ import annotations

import json
import secrets
from typing import Final

from airi.text.tools import MarkerParser, ToolFormat
from airi.upstreams.chunks import CallDelta

__all__ = ["CallWriter", "MisplacedCallError", "tool_form"]

_MARK_LENGTH: Final = 8
_PRIVATE: Final = range(0xE000, 0xF900)  # of Unicode's private use area: no text means anything by them


class MisplacedCallError(Exception):
    """A call that nobody asked for, without a name, or of no object."""


def tool_form() -> ToolFormat:
    """A form of calls whose marks nobody can guess, so that no text of a model makes a call."""
    mark = "".join(chr(secrets.choice(_PRIVATE)) for _ in range(_MARK_LENGTH))
    begin, end = f"<{mark}>", f"</{mark}>"
    return ToolFormat(name="upstream", parser=lambda _: MarkerParser(begin, end), mark=begin, end_mark=end)


class CallWriter:
    """Writes the calls of one choice. *Thread safety*: none. *Invariant*: calls are in order, one after the other."""

    def __init__(self, form: ToolFormat | None) -> None:
        """`form`: None where the model may make no calls."""
        self._form = form
        self._index = -1  # of the last call
        self._id: str | None = None
        self._is_open = self._has_arguments = False

    def text(self, text: str) -> str:
        """Text of the answer, behind the calls before it."""
        return self.close() + text if text else ""

    def call(self, delta: CallDelta) -> str:
        """What is added to a call. Raises MisplacedCallError."""
        if self._form is None:
            raise MisplacedCallError
        written = ""
        name = delta.function.name
        # Some servers give all calls one index; their ids differ.
        is_next = delta.index > self._index or (bool(name) and delta.id is not None and delta.id != self._id)
        if is_next:
            if not name:
                raise MisplacedCallError
            head = '{"name": ' + json.dumps(name, ensure_ascii=False) + ', "arguments": '
            written = self.close() + self._form.mark + head
            self._index, self._id = max(delta.index, self._index), delta.id
            self._is_open, self._has_arguments = True, False
        elif delta.index < self._index or not self._is_open:
            raise MisplacedCallError
        return written + self._arguments(delta.function.arguments or "")

    def _arguments(self, text: str) -> str:
        if not self._has_arguments:
            text = text.lstrip()
            if text and text[0] != "{":
                raise MisplacedCallError
            self._has_arguments = bool(text)
        return text

    def close(self) -> str:
        """The end of a call that is open."""
        if not self._is_open or self._form is None:
            return ""
        self._is_open = False
        return ("" if self._has_arguments else "{}") + "}" + self._form.end_mark
