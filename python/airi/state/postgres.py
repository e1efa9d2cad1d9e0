"""The state in PostgreSQL, for gateways on several machines."""

from __future__ import annotations

from typing import Any

import asyncpg

from airi.errors import StateError
from airi.state.store import Row, Statement, Store

__all__ = ["PostgresStore"]

_CONNECTIONS = 4
_CONNECT_S = 10.0
_ANSWER_S = 10.0
# No prepared statements by name: poolers that change the connection under us do not keep them.
_SETTINGS: dict[str, Any] = {
    "timeout": _CONNECT_S,
    "command_timeout": _ANSWER_S,
    "statement_cache_size": 0,
    "server_settings": {"application_name": "airi"},
}
_MIGRATION_LOCK = 0x61697269
"""Any number, the same in every process."""
_OWNER_LOCK = 0x6169726F
"""As that one; together with the table it is of this state alone."""
# A transaction that lasts: poolers leave it on one connection of the server's. It holds no snapshot and no row, and the
# server learns within half a minute of a machine that is gone.
_HOLD = """
    BEGIN;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL tcp_keepalives_idle = 10;
    SET LOCAL tcp_keepalives_interval = 5;
    SET LOCAL tcp_keepalives_count = 4"""
_TAKE_LOCK = f"SELECT pg_try_advisory_xact_lock({_OWNER_LOCK}, 'airi_meta'::regclass::oid::int)"
# Not to_regclass: it may remember from before the wait for the lock that there was no such table.
_HAS_META = (
    "SELECT 1 FROM pg_class WHERE relname = 'airi_meta' AND relkind = 'r' AND pg_table_is_visible(oid)"
)


class PostgresStore(Store):
    """A small pool of connections. Those that break are replaced; the method that was on one raises StateError."""

    def __init__(self, pool: Any, url: str, shown: str) -> None:
        super().__init__(shown)
        self._pool = pool
        self._url = url
        self._lock_holder: Any = None

    @classmethod
    async def open(cls, url: str, shown: str) -> PostgresStore:
        """Connects, and makes or updates the tables in the first schema of the user's search path."""
        try:
            pool = await asyncpg.create_pool(url, min_size=1, max_size=_CONNECTIONS, **_SETTINGS)
        except _FAILURES as error:
            raise StateError(f"state {shown} cannot be opened: {_reason(error)}") from None
        store = cls(pool, url, shown)
        try:
            await store._migrate()
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Closes the connections."""
        if self._lock_holder is not None:
            await self._lock_holder.close()
        await self._pool.close()

    async def _read(self, *statements: Statement) -> list[list[Row]]:
        return await self._transaction(statements, isolation="repeatable_read", readonly=True)

    async def _write(self, *statements: Statement) -> list[list[Row]]:
        return await self._transaction(statements)

    async def _lock_budgets(self) -> bool:
        if self._pool.is_closing():
            raise StateError(f"state {self.shown} is closed")
        if self._lock_holder is not None and not self._lock_holder.is_closed():
            return True
        try:
            holder = await asyncpg.connect(self._url, **_SETTINGS)
            try:
                await holder.execute(_HOLD)
                is_held = bool(await holder.fetchval(_TAKE_LOCK))
            except BaseException:
                holder.terminate()
                raise
            if is_held:
                self._lock_holder = holder
            else:
                await holder.close()
            return is_held
        except _FAILURES as error:
            raise StateError(f"state {self.shown}: {_reason(error)}") from None

    async def _transaction(self, statements: tuple[Statement, ...], **mode: Any) -> list[list[Row]]:
        try:
            async with self._pool.acquire(timeout=_ANSWER_S) as connection, connection.transaction(**mode):
                return [await connection.fetch(sql, *arguments) for sql, arguments in statements]
        except _FAILURES as error:
            raise StateError(f"state {self.shown}: {_reason(error)}") from None

    async def _migrate(self) -> None:
        try:
            async with self._pool.acquire(timeout=_ANSWER_S) as connection:
                if not self._pending(await _version(connection)):
                    return
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
                    for sql, arguments in self._pending(await _version(connection)):
                        await connection.execute(sql, *arguments)
        except _FAILURES as error:
            raise StateError(f"state {self.shown} cannot be made ready: {_reason(error)}") from None


_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.ClientConfigurationError,
    OSError,
    TimeoutError,
    ValueError,
)


async def _version(connection: Any) -> int:
    if not await connection.fetch(_HAS_META):
        return 0
    return int(await connection.fetchval("SELECT version FROM airi_meta"))


def _reason(error: Exception) -> str:
    """One line. What a server says of a row (its DETAIL) and what a parser says of a URL stay out."""
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, OSError):
        return error.strerror.splitlines()[0] if error.strerror else "no server answers"
    if isinstance(error, asyncpg.PostgresError):
        return str(error).splitlines()[0]
    if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError):
        return "the connection is closed"
    return "the URL cannot be used"
