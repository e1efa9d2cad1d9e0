"""The SQLite file of a collection: its tables, its connections, and errors that name it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airi.errors import StateError

__all__ = ["Database"]

_VERSION = 1
_BUSY_S = 30.0
"""How long another process may write before this one gives up."""
_OLDEST = (3, 35, 0)
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
CREATE TABLE commits (seq INTEGER PRIMARY KEY, time REAL NOT NULL);
CREATE TABLE rows (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata BLOB NOT NULL,
    source TEXT NOT NULL,
    time REAL NOT NULL,
    digest BLOB NOT NULL,
    added INTEGER NOT NULL,
    removed INTEGER
);
CREATE UNIQUE INDEX rows_live ON rows (id) WHERE removed IS NULL;
CREATE INDEX rows_added ON rows (added);
CREATE INDEX rows_removed ON rows (removed) WHERE removed IS NOT NULL;
CREATE INDEX rows_source ON rows (source) WHERE removed IS NULL;
CREATE TABLE spaces (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    space TEXT NOT NULL,
    added INTEGER NOT NULL,
    cursor INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE vectors (
    space INTEGER NOT NULL,
    row INTEGER NOT NULL,
    added INTEGER NOT NULL,
    vector BLOB NOT NULL
);
CREATE UNIQUE INDEX vectors_row ON vectors (row, space);
CREATE INDEX vectors_added ON vectors (added);
CREATE TABLE activations (seq INTEGER PRIMARY KEY, space INTEGER, previous INTEGER);
CREATE VIRTUAL TABLE texts USING fts5 (
    text, content='rows', content_rowid='number', tokenize='unicode61 remove_diacritics 2'
);
"""


class Database:
    """Connections to one file: one that writes, and as many that read as there are readers at once.

    Thread safety: any thread may read; writes take turns, also with other processes.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self.path = path
        self.shown = shown
        self._writing = threading.RLock()
        self._idle: list[sqlite3.Connection] = []
        """Those that read, and that nobody uses now."""
        self._closed = False
        with self.named():
            self.writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self.writer.close()
                raise

    def close(self) -> None:
        """Waits for the write that runs, and closes all connections."""
        with self._writing:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            with suppress(sqlite3.Error):
                self.writer.close()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Turns errors of SQLite and of the disk into a StateError of one line."""
        try:
            yield
        except sqlite3.Error as error:
            if self._closed:
                raise StateError(f"{self.shown} is closed") from None
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                reason = "the disk is full; nothing of this was kept"
            elif code == sqlite3.SQLITE_NOTADB:
                reason = "the file is no SQLite database"
            else:
                reason = str(error)
            raise StateError(f"{self.shown}: {reason}") from None
        except OSError as error:
            raise StateError(f"{self.shown}: {error.strerror or error}") from None

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses in the block."""
        with self.named():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            finally:
                self._idle.append(connection)
                if self._closed:
                    self.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read in the block is of one moment."""
        with self.reader() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block is kept when it ends, or nothing is where it raises."""
        with self._writing, self.named():
            self.writer.execute("BEGIN IMMEDIATE")
            try:
                yield self.writer
                self.writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.writer.execute("ROLLBACK")
                raise

    def commit_number(self) -> int:
        """Takes the next number for what is written in this transaction."""
        last, before = self.writer.execute("SELECT MAX(seq), MAX(time) FROM commits").fetchone()
        # Clocks may be set back; moments of a collection never are.
        self.writer.execute("INSERT INTO commits VALUES (?, ?)", (last + 1, max(time.time(), before)))
        return int(last) + 1

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise StateError(f"{self.shown} is closed")
        return sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise StateError(f"{self.shown}: SQLite is {sqlite3.sqlite_version}; it must be 3.35 or newer")
        # Before the first table: pages that hold two vectors of a usual length.
        self.writer.execute("PRAGMA page_size = 8192")
        self._use_log()
        self.writer.execute("PRAGMA synchronous = FULL")
        with self.writing() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('version', ?)", (_VERSION,))
                connection.execute("INSERT INTO commits VALUES (0, ?)", (time.time(),))
            found = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
        if found is None or found[0] != _VERSION:
            was = None if found is None else found[0]
            raise StateError(f"{self.shown}: its tables are of version {was}; this AIRI knows {_VERSION}")

    def _use_log(self) -> None:
        """Turns the write-ahead log on. Two that do so at once are not made to wait by SQLite: hence the loop."""
        give_up = time.monotonic() + _BUSY_S
        while True:
            try:
                (mode,) = self.writer.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
        if mode != "wal":
            raise StateError(f"{self.shown}: its file system cannot hold a write-ahead log")
