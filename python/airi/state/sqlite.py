"""The state in one file: SQLite with a write-ahead log, for any number of processes on one machine."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from airi.errors import StateError
from airi.state.store import Row, Statement, Store

__all__ = ["SqliteStore"]

T = TypeVar("T")

_BUSY_S = 10.0
"""How long another process may hold the file before this one gives up."""
_RETRY_S = 0.02
_MAKING = threading.Lock()
_OLDEST = (3, 35, 0)
"""The first one with RETURNING."""
_HAS_META = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'airi_meta'"


class SqliteStore(Store):
    """One connection on one thread of its own, so that neither a disk nor a lock ever stops the event loop.

    A write has reached the disk when its method returns (synchronous=FULL): a revoked key stays so after a power cut.
    """

    def __init__(self, path: Path, shown: str) -> None:
        super().__init__(shown)
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="airi-state")
        self._connection: sqlite3.Connection | None = None
        self._lock_file: int | None = None

    @classmethod
    async def open(cls, path: Path, shown: str) -> SqliteStore:
        """Opens the file, which is made if it is not there; its folder must be."""
        store = cls(path, shown)
        try:
            await store._call(store._open)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Waits for what was begun and closes the file."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

        with suppress(RuntimeError):  # closed before
            await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    async def _read(self, *statements: Statement) -> list[list[Row]]:
        return await self._call(lambda: self._transaction("BEGIN", statements))

    async def _write(self, *statements: Statement) -> list[list[Row]]:
        return await self._call(lambda: self._transaction("BEGIN IMMEDIATE", statements))

    async def _lock_budgets(self) -> bool:
        return await self._call(self._take_lock)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise StateError(f"state {self.shown}: {reason}") from None
        except RuntimeError:
            raise StateError(f"state {self.shown} is closed") from None

    # -- on the thread -------------------------------------------------------------------------

    def _open(self) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise StateError(
                f"state {self.shown}: SQLite is {sqlite3.sqlite_version}; it must be 3.35 or newer"
            )
        self._make()
        self._connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        self._use_log()
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        if self._pending(self._version()):
            self._connection.execute("BEGIN IMMEDIATE")
            self._finish(tuple(self._pending(self._version())))  # another process may have been first

    def _make(self) -> None:
        """Makes the file where there is none: nobody else needs to know who has keys; the log takes the mode over.

        One that is there is never opened beside SQLite. To close it would end the locks of this process's other
        stores, as POSIX has it, and the next process to leave would take the log away from under them.
        """
        path = os.path.realpath(self._path)
        try:
            with _MAKING:  # closed before any other store opens it
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            if not os.access(path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    def _take_lock(self) -> bool:
        """Locks a file beside the state's, for as long as it is open: until this process has ended, however it does."""
        if self._lock_file is None:
            path = f"{os.path.realpath(self._path)}-owner"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._lock_file = file
        return True

    def _use_log(self) -> None:
        """Turns the write-ahead log on. Two that do so at once are not made to wait by SQLite: hence the loop."""
        give_up = time.monotonic() + _BUSY_S
        while True:
            try:
                ((mode,),) = self._run(("PRAGMA journal_mode = WAL", ()))
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(_RETRY_S)
        if mode != "wal":
            raise StateError(f"state {self.shown}: its file system cannot hold a write-ahead log")

    def _version(self) -> int:
        if not self._run((_HAS_META, ())):
            return 0
        ((version,),) = self._run(("SELECT version FROM airi_meta", ()))
        return int(version)

    def _transaction(self, begin: str, statements: tuple[Statement, ...]) -> list[list[Row]]:
        self._run((begin, ()))
        return self._finish(statements)

    def _finish(self, statements: tuple[Statement, ...]) -> list[list[Row]]:
        """Runs these in the transaction that has begun and commits; what fails leaves nothing behind."""
        try:
            rows = [self._run(statement) for statement in statements]
            self._run(("COMMIT", ()))
        except BaseException:
            with suppress(sqlite3.Error):
                self._run(("ROLLBACK", ()))
            raise
        return rows

    def _run(self, statement: Statement) -> list[Row]:
        sql, arguments = statement
        if self._connection is None:
            raise StateError(f"state {self.shown} is closed")
        with closing(self._connection.execute(re.sub(r"\$(\d)", r"?\1", sql), arguments)) as cursor:
            return cursor.fetchall()
