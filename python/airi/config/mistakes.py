"""What is wrong with a config file, one line each. A line never holds a secret or the value of a variable."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Mistake", "dotted", "masked", "shown"]

_LONGEST = 60
_CREDENTIALS = re.compile(r"(://)[^/\s@]*@")
_SECRETS = re.compile(
    r"(?i)\b(sk|pk|rk|ghp|hf|xox[abp]|glpat)[-_][a-z0-9+/_.-]{8,}={0,2}|\b(eyj|akia)[a-z0-9_.-]{8,}|[a-z0-9+_]{24,}={0,2}"
)
"""Keys as common issuers write them, and anything as long and as even as a secret. A secret may be written where none
belongs, so values are looked at and not the keys they are under."""
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS = re.compile(r"_*[A-Za-z]+\d{0,2}([_-]+[A-Za-z]+\d{0,2})*_*")
"""Names of keys as people make them up, however long: a secret has digits all over."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """`FILE:LINE: path.to.key WHAT; HINT`."""

    file: str
    line: int
    path: tuple[str | int, ...]
    what: str
    """Continues a sentence that the path begins; with an empty path it stands alone."""
    hint: str = ""

    def __str__(self) -> str:
        where = f"{dotted(self.path)} " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        text = f"{self.file}:{self.line}: {where}{self.what}{hint}"
        return " ".join(text.split())


def dotted(path: tuple[str | int, ...]) -> str:
    """`models[0].engine.dtype`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _is_name(step) else shown(step)
            text += f".{name}" if text else name
    return text


def _is_name(key: str) -> bool:
    if len(key) > _LONGEST or not _BARE.fullmatch(key):
        return False
    return _WORDS.fullmatch(key) is not None or not _SECRETS.fullmatch(key)


def masked(text: str) -> str:
    """A text without credentials and what looks like a key."""
    return _SECRETS.sub("***", _CREDENTIALS.sub(r"\1***@", text))


def shown(text: str, *, quoted: bool = True) -> str:
    """A text for people: one short line, without credentials and what looks like a key."""
    text = masked(text)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    text = text.encode(errors="backslashreplace").decode()
    return repr(text) if quoted else repr(text)[1:-1]
