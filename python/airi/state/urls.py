"""Where the state is, as a URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from airi.errors import ConfigError

__all__ = ["DEFAULT_URL", "StateUrl"]

DEFAULT_URL = "sqlite:///./airi.db"
_POSTGRES = ("postgresql", "postgres")
_ACCEPTED = "accepted: sqlite:///PATH (four slashes for an absolute one) or postgresql://USER@HOST/DATABASE"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateUrl:
    """A state's URL that has been understood. Its repr has no password."""

    text: str = field(repr=False)
    shown: str
    """For messages: without password and parameters."""
    path: Path | None
    """The file of a SQLite database; None for PostgreSQL."""

    @classmethod
    def parse(cls, text: str) -> StateUrl:
        """Raises ConfigError, which does not repeat what might be a password."""
        scheme, separator, rest = text.strip().partition("://")
        if not separator or scheme not in ("sqlite", *_POSTGRES):
            raise ConfigError(f"state is no URL of a database that is known; {_ACCEPTED}", field="state")
        if scheme == "sqlite":
            return _sqlite(rest)
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError(
                f"state is a {scheme} URL that cannot be read; {_ACCEPTED}", field="state"
            ) from None
        database = parts.path.lstrip("/")
        if "/" in database:
            raise ConfigError(f"state names no database of PostgreSQL; {_ACCEPTED}", field="state")
        user = f"{unquote(parts.username)}@" if parts.username else ""
        shown = f"{scheme}://{user}{host}{f':{port}' if port else ''}/{database}"
        return cls(text=text.strip(), shown=shown, path=None)

    def below(self, folder: Path) -> StateUrl:
        """The same state, where a relative file of SQLite is one of this folder and not of the working directory."""
        if self.path is None or self.path.is_absolute():
            return self
        return _sqlite(f"/{quote(str((folder / self.path).resolve()))}")


def _sqlite(rest: str) -> StateUrl:
    host, slash, path = rest.partition("/")
    if host or not slash or not path or path.endswith("/"):
        raise ConfigError(f"state is 'sqlite://{rest}', which names no file; {_ACCEPTED}", field="state")
    if path == ":memory:":
        raise ConfigError(
            "state is in memory, which would be gone with this process; give sqlite:///PATH", field="state"
        )
    return StateUrl(text=f"sqlite:///{path}", shown=f"sqlite:///{path}", path=Path(unquote(path)))
