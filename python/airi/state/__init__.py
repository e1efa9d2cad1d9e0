"""What must survive a restart: numbers of tenants, keys, budgets, releases. SQLite by default, PostgreSQL by one line.

Imports no database driver: `open_store` does, the one that the URL asks for.
"""

from __future__ import annotations

from airi.state.records import Budget, Charge, DocumentRecord, KeyRecord
from airi.state.store import Store
from airi.state.urls import DEFAULT_URL, StateUrl

__all__ = ["DEFAULT_URL", "Budget", "Charge", "DocumentRecord", "KeyRecord", "Store", "open_store"]


async def open_store(url: str) -> Store:
    """The store at `sqlite:///PATH` or `postgresql://...`, brought to this version's tables; the caller closes it.

    Raises ConfigError for what is no such URL, StateError for a database that cannot be used. No message holds the
    URL's password.
    """
    parsed = StateUrl.parse(url)
    if parsed.path is not None:
        from airi.state.sqlite import SqliteStore

        return await SqliteStore.open(parsed.path, parsed.shown)
    from airi.state.postgres import PostgresStore

    return await PostgresStore.open(parsed.text, parsed.shown)
