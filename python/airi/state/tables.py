"""The tables and how they came about; SQL that SQLite and PostgreSQL both take, parameters as $1, $2, ..."""

from __future__ import annotations

__all__ = ["MIGRATIONS"]

MIGRATIONS: list[tuple[str, ...]] = [
    (
        # One row. Every change of tenants and keys counts `changes` up first, in its own transaction: the row's lock
        # puts the changes in an order, and whoever has seen a count has seen all changes up to it.
        """CREATE TABLE airi_meta (
            id BIGINT PRIMARY KEY CHECK (id = 1),
            version BIGINT NOT NULL,
            changes BIGINT NOT NULL
        )""",
        "INSERT INTO airi_meta (id, version, changes) VALUES (1, 0, 0)",
        "CREATE TABLE airi_tenants (number BIGINT PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
        """CREATE TABLE airi_keys (
            id TEXT PRIMARY KEY,
            tenant BIGINT NOT NULL REFERENCES airi_tenants (number),
            prefix TEXT NOT NULL,
            digest TEXT NOT NULL UNIQUE,
            created BIGINT NOT NULL,
            expires BIGINT,
            revoked BIGINT,
            replaced_by TEXT,
            retires BIGINT,
            changed BIGINT NOT NULL
        )""",
        "CREATE INDEX airi_keys_changed ON airi_keys (changed)",
        """CREATE TABLE airi_budgets (
            scope TEXT NOT NULL,
            period_start BIGINT NOT NULL,
            spent_micro BIGINT NOT NULL,
            device_us BIGINT NOT NULL,
            PRIMARY KEY (scope, period_start)
        )""",
    ),
    # Who may spend: the store that took the budgets last.
    ("ALTER TABLE airi_meta ADD COLUMN owner TEXT",),
    # What lifecycle keeps: documents that only who has seen the latest revision can replace. `changed` as of keys.
    (
        """CREATE TABLE airi_documents (
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            revision BIGINT NOT NULL,
            body TEXT NOT NULL,
            changed BIGINT NOT NULL,
            PRIMARY KEY (kind, name)
        )""",
        "CREATE INDEX airi_documents_changed ON airi_documents (kind, changed)",
    ),
]
"""Version N is what the first N of them make. A released one is never edited; add another."""
