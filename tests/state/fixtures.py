"""Databases for tests; `tests/conftest.py` offers them to all areas."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.state.postgres_server import PostgresServer, binaries, postgres_server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of this session's own. CI must have one; elsewhere its tests are skipped without it."""
    programs = binaries()
    if programs is None:
        message = "PostgreSQL's initdb is not installed (Debian package postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with postgres_server(programs) as server:
        yield server


@pytest.fixture
def make_state_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """URLs of empty databases, by kind: "sqlite" or "postgresql"."""

    def make(kind: str) -> str:
        number = next(_numbers)
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/state{number}.db"
        server: PostgresServer = request.getfixturevalue("postgres")
        asyncio.run(_create_database(server, f"state{number}"))
        return server.url(f"state{number}")

    return make


async def _create_database(server: PostgresServer, name: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(server.url())
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, make_state_url: Callable[[str], str]) -> str:
    """An empty database, once of each kind."""
    return make_state_url(request.param)
