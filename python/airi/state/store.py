"""The state as its users see it: one set of statements over either database."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from airi.errors import StateError
from airi.state import tables
from airi.state.records import Budget, Charge, DocumentRecord, KeyRecord

__all__ = ["Statement", "Store"]

Statement = tuple[str, tuple[Any, ...]]
Row = Sequence[Any]

_BUMP: Statement = ("UPDATE airi_meta SET changes = changes + 1", ())
_CHANGES = "SELECT changes FROM airi_meta"
_ADD_TENANT = """
    INSERT INTO airi_tenants (number, name)
    SELECT (SELECT COALESCE(MAX(number), 0) + 1 FROM airi_tenants), CAST($1 AS TEXT)
    WHERE NOT EXISTS (SELECT 1 FROM airi_tenants WHERE name = $1)"""
_KEYS = """
    SELECT k.id, t.name, t.number, k.prefix, k.digest, k.created, k.expires, k.revoked, k.replaced_by, k.retires
    FROM airi_keys k JOIN airi_tenants t ON t.number = k.tenant"""
_COLUMNS = (
    "id",
    "tenant",
    "number",
    "prefix",
    "digest",
    "created",
    "expires",
    "revoked",
    "replaced_by",
    "retires",
)
_ADD_KEY = f"""
    INSERT INTO airi_keys (id, tenant, prefix, digest, created, expires, changed)
    SELECT CAST($1 AS TEXT), number, CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), CAST($6 AS BIGINT),
           ({_CHANGES})
    FROM airi_tenants WHERE name = $2"""
_REVOKE = f"UPDATE airi_keys SET revoked = $2, changed = ({_CHANGES}) WHERE id = $1 AND revoked IS NULL"
_RETIRE = f"""
    UPDATE airi_keys SET replaced_by = $2, retires = $3, changed = ({_CHANGES})
    WHERE id = $1 AND revoked IS NULL AND replaced_by IS NULL AND (expires IS NULL OR expires > $4)"""
_ADD_SUCCESSOR = f"{_ADD_KEY} AND EXISTS (SELECT 1 FROM airi_keys WHERE id = $7 AND replaced_by = $1)"
_DOCUMENTS = "SELECT kind, name, revision, body FROM airi_documents"
_REPLACE_DOCUMENT = f"""
    UPDATE airi_documents SET body = $3, revision = revision + 1, changed = ({_CHANGES})
    WHERE kind = $1 AND name = $2 AND revision = $4
    RETURNING revision"""
_ADD_DOCUMENT = f"""
    INSERT INTO airi_documents (kind, name, revision, body, changed)
    VALUES (CAST($1 AS TEXT), CAST($2 AS TEXT), 1, CAST($3 AS TEXT), ({_CHANGES}))
    ON CONFLICT (kind, name) DO NOTHING
    RETURNING revision"""
_FORGET_DOCUMENT = (
    "DELETE FROM airi_documents WHERE kind = $1 AND name = $2 AND revision = $3 RETURNING revision"
)
_BUDGET = "SELECT scope, period_start, spent_micro, device_us FROM airi_budgets"
# Its row's lock puts what an owner spends before or after the next one begins.
_LOCK_OWNER: Statement = ("UPDATE airi_meta SET owner = owner", ())
_OWN = "UPDATE airi_meta SET owner = $1"
_ADD_BUDGET = """
    INSERT INTO airi_budgets (scope, period_start, spent_micro, device_us)
    SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS BIGINT), CAST($4 AS BIGINT)
    WHERE CAST($5 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM airi_meta WHERE owner = CAST($5 AS TEXT))
    ON CONFLICT (scope, period_start) DO UPDATE
    SET spent_micro = airi_budgets.spent_micro + excluded.spent_micro,
        device_us = airi_budgets.device_us + excluded.device_us
    RETURNING scope, period_start, spent_micro, device_us"""


class Store(ABC):
    """Tenants' numbers, keys, budgets and documents, shared by all processes that open the same URL.

    Never holds a secret: keys are digests here. Every method is one transaction; it raises StateError when the
    database does not answer, and then it may or may not have been done.

    *Thread safety*: none; one event loop.
    *Invariant*: a tenant's number never changes and is never given to another.
    """

    def __init__(self, shown: str) -> None:
        self.shown = shown
        """Its URL without a password."""
        self._owner: str | None = None
        self._owning = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Gives the database back; the store cannot be used any more."""

    @abstractmethod
    async def _read(self, *statements: Statement) -> list[list[Row]]:
        """The rows of each, all of one moment."""

    @abstractmethod
    async def _write(self, *statements: Statement) -> list[list[Row]]:
        """The rows of each; all are done or none."""

    @abstractmethod
    async def _lock_budgets(self) -> bool:
        """Keeps other stores from taking the budgets until this one is closed or its process ends.

        Where that was done before, sees to it that it still holds. False where another store has done it.
        """

    # -- tenants -------------------------------------------------------------------------------

    async def changes(self) -> int:
        """A count that goes up with every change of tenants and keys."""
        ((row,),) = await self._read((_CHANGES, ()))
        return int(row[0])

    async def tenants(self) -> dict[str, int]:
        """The number of every tenant that was ever named, from 1 on."""
        (rows,) = await self._read(("SELECT name, number FROM airi_tenants ORDER BY number", ()))
        return {str(name): int(number) for name, number in rows}

    async def number_tenants(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers of these tenants; those that are new get the next ones, in the order given."""
        wanted = list(dict.fromkeys(names))
        known = await self.tenants()
        missing = [name for name in wanted if name not in known]
        if missing:
            await self._write(_BUMP, *((_ADD_TENANT, (name,)) for name in missing))
            known = await self.tenants()
        return {name: known[name] for name in wanted}

    # -- keys ----------------------------------------------------------------------------------

    async def keys(self, *, since: int = 0) -> tuple[list[KeyRecord], int]:
        """The keys that were added or changed after this count of `changes`, and the count now."""
        changed = (f"{_KEYS} WHERE k.changed > $1 ORDER BY k.created, k.id", (since,))
        counts, rows = await self._read((_CHANGES, ()), changed)
        return [_key(row) for row in rows], int(counts[0][0])

    async def key(self, key_id: str) -> KeyRecord | None:
        """The key of this id."""
        (rows,) = await self._read((f"{_KEYS} WHERE k.id = $1", (key_id,)))
        return _key(rows[0]) if rows else None

    async def add_key(
        self, *, id: str, tenant: str, prefix: str, digest: str, created: int, expires: int | None
    ) -> KeyRecord:
        """Keeps a new key; its tenant gets a number if it has none."""
        rows = await self._write(
            _BUMP,
            (_ADD_TENANT, (tenant,)),
            (_ADD_KEY, (id, tenant, prefix, digest, created, expires)),
            (f"{_KEYS} WHERE k.id = $1", (id,)),
        )
        return _key(rows[-1][0])

    async def revoke_key(self, key_id: str, *, at: int) -> KeyRecord | None:
        """Ends a key for good and returns it; one that had ended so before stays as it is. None: no such key."""
        rows = await self._write(_BUMP, (_REVOKE, (key_id, at)), (f"{_KEYS} WHERE k.id = $1", (key_id,)))
        return _key(rows[-1][0]) if rows[-1] else None

    async def replace_key(
        self, old: KeyRecord, *, id: str, digest: str, created: int, expires: int | None, retires: int
    ) -> KeyRecord | None:
        """A new key for the same tenant in place of `old`, which goes on until `retires`.

        None, and nothing has changed, where the old one was revoked, rotated or has expired meanwhile.
        """
        rows = await self._write(
            _BUMP,
            (_RETIRE, (old.id, id, retires, created)),
            (_ADD_SUCCESSOR, (id, old.tenant, old.prefix, digest, created, expires, old.id)),
            (f"{_KEYS} WHERE k.id = $1", (id,)),
        )
        return _key(rows[-1][0]) if rows[-1] else None

    # -- budgets -------------------------------------------------------------------------------

    async def own_budgets(self) -> None:
        """From now on no other store owns the budgets, and one that did spends no more of them.

        For servers that count in their own memory. Raises StateError while another store owns them.
        """
        async with self._owning:
            if not await self._lock_budgets():
                raise self._not_owned()
            if self._owner is None:
                owner = secrets.token_hex(8)
                await self._write((_OWN, (owner,)))
                self._owner = owner

    def _not_owned(self) -> StateError:
        return StateError(
            f"state {self.shown} is used by another server; several share limits by server.shared_counters"
        )

    async def spend(self, charges: Iterable[Charge]) -> list[Budget]:
        """Adds all charges or none, and returns what is spent then, one budget per charge.

        What is spent may pass any limit: ledgers refuse. Raises StateError where this store owned the budgets and
        another one does by now.
        """
        # Rows are locked in one order everywhere, so that two gateways never wait for each other.
        places = sorted(enumerate(charges), key=lambda place: (place[1].scope, place[1].period_start))
        if not places:
            return []
        if self._owner is not None:
            await self.own_budgets()
        statements = ((_ADD_BUDGET, (*_amounts(charge), self._owner)) for _, charge in places)
        _, *found = await self._write(_LOCK_OWNER, *statements)
        if not all(found):
            raise self._not_owned()
        budgets = {index: _budget(rows[0]) for (index, _), rows in zip(places, found, strict=True)}
        return [budgets[index] for index in range(len(places))]

    async def budget(self, scope: str, period_start: int) -> Budget:
        """What is spent; zero where nothing was ever charged."""
        where = f"{_BUDGET} WHERE scope = $1 AND period_start = $2"
        (rows,) = await self._read((where, (scope, period_start)))
        if rows:
            return _budget(rows[0])
        return Budget(scope=scope, period_start=period_start, spent_micro=0, device_us=0)

    async def forget_budgets(self, places: Iterable[tuple[str, int]]) -> None:
        """Drops, for each (scope, second), the periods that began before that second."""
        forget = "DELETE FROM airi_budgets WHERE scope = $1 AND period_start < $2"
        statements = [(forget, place) for place in sorted(places)]
        if statements:
            await self._write(*statements)

    # -- documents -----------------------------------------------------------------------------

    async def documents(self, kind: str, *, since: int = 0) -> tuple[list[DocumentRecord], int]:
        """Those of a kind that were added or replaced after this count of `changes`, by name, and the count now."""
        changed = (f"{_DOCUMENTS} WHERE kind = $1 AND changed > $2 ORDER BY name", (kind, since))
        counts, rows = await self._read((_CHANGES, ()), changed)
        return [_document(row) for row in rows], int(counts[0][0])

    async def document(self, kind: str, name: str) -> DocumentRecord | None:
        """The document of this name."""
        (rows,) = await self._read((f"{_DOCUMENTS} WHERE kind = $1 AND name = $2", (kind, name)))
        return _document(rows[0]) if rows else None

    async def put_document(self, kind: str, name: str, body: str, *, revision: int) -> int | None:
        """Puts a document in the place of this revision of it, 0 for none, and returns its revision from now on.

        None, and nothing has changed, where another one stands there.
        """
        statement = _REPLACE_DOCUMENT if revision else _ADD_DOCUMENT
        arguments = (kind, name, body, revision) if revision else (kind, name, body)
        _, rows = await self._write(_BUMP, (statement, arguments))
        return int(rows[0][0]) if rows else None

    async def forget_document(self, kind: str, name: str, *, revision: int) -> bool:
        """Drops this revision of a document; False, and nothing has changed, where another one stands there, or none.

        Nobody is told: `documents` has only what there is.
        """
        (rows,) = await self._write((_FORGET_DOCUMENT, (kind, name, revision)))
        return bool(rows)

    # -- versions ------------------------------------------------------------------------------

    def _pending(self, version: int) -> list[Statement]:
        """What brings tables of `version` to the latest one. Raises StateError for those of a later release."""
        latest = len(tables.MIGRATIONS)
        if version > latest:
            raise StateError(
                f"state {self.shown} was written by a newer AIRI: its tables are of version {version}, "
                f"this one knows those up to {latest}"
            )
        if version == latest:
            return []
        steps: list[Statement] = [(sql, ()) for step in tables.MIGRATIONS[version:] for sql in step]
        return [*steps, ("UPDATE airi_meta SET version = $1", (latest,))]


def _key(row: Row) -> KeyRecord:
    return KeyRecord(**dict(zip(_COLUMNS, row, strict=True)))


def _document(row: Row) -> DocumentRecord:
    kind, name, revision, body = row
    return DocumentRecord(kind=kind, name=name, revision=revision, body=body)


def _budget(row: Row) -> Budget:
    scope, period_start, spent_micro, device_us = row
    return Budget(scope=scope, period_start=period_start, spent_micro=spent_micro, device_us=device_us)


def _amounts(charge: Charge) -> tuple[str, int, int, int]:
    return charge.scope, charge.period_start, charge.micro, charge.device_us
