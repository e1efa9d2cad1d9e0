"""What is said of a state that cannot be used: one line, without the URL's password."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from airi.errors import AiriError, ConfigError, StateError
from airi.state import open_store
from airi.state.urls import StateUrl
from tests.state.postgres_server import PASSWORD, PostgresServer


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no URL of a database that is known"),
        ("airi.db", "accepted: sqlite:///PATH"),
        ("mysql://u:rain-on-tin@host/db", "no URL of a database that is known"),
        ("sqlite://airi.db", "'sqlite://airi.db', which names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///:memory:", "gone with this process"),
        ("postgresql://u:rain-on-tin@host:port/db", "cannot be read"),
        ("postgresql://u:rain-on-tin@[host/db", "cannot be read"),
        ("postgresql://u:rain-on-tin@host/a/b", "names no database"),
    ],
)
async def test_a_url_that_cannot_be_used_is_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_store(url)
    assert says in str(caught.value)
    check(caught.value)


ADD_TENANT = """
import asyncio, sys
from airi.state import open_store
async def add(url, name):
    async with await open_store(url) as store:
        await store.number_tenants([name])
asyncio.run(add(*sys.argv[1:]))
"""


def check(error: AiriError) -> None:
    assert "\n" not in str(error)
    assert PASSWORD not in str(error)
    assert PASSWORD not in repr(error)


def test_what_is_shown_of_a_url_has_no_password() -> None:
    url = StateUrl.parse(
        "postgresql://us%20er:rain-on-tin@db.example:5433/airi?password=rain-on-tin&sslmode=require"
    )
    assert url.shown == "postgresql://us er@db.example:5433/airi"
    assert PASSWORD not in repr(url)


def test_paths_are_relative_with_three_slashes_and_absolute_with_four() -> None:
    assert StateUrl.parse("sqlite:///./a%20b.db").path == Path("a b.db")
    assert StateUrl.parse("sqlite:////var/airi.db").path == Path("/var/airi.db")


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^state sqlite:////.*/nowhere/a\.db: No such file or directory$"):
        await open_store(f"sqlite:///{tmp_path}/nowhere/a.db")


async def test_a_folder_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Is a directory"):
        await open_store(f"sqlite:///{tmp_path}")


async def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to have a header of one\n" * 40)
    before = path.read_bytes()
    with pytest.raises(StateError, match="file is not a database"):
        await open_store(f"sqlite:///{path}")
    assert path.read_bytes() == before


async def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with await open_store(f"sqlite:///{path}") as store:
        await store.number_tenants(["a"])
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.db", "a.db-wal", "a.db-shm"), 0o600)


async def test_other_processes_come_and_go_while_two_stores_of_one_are_open(tmp_path: Path) -> None:
    """As `airi keys` does beside a server: the last to leave a log takes it away, and these are still there."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with await open_store(url) as first, await open_store(url) as second:
        await first.number_tenants(["a"])
        for name in ("b", "c"):
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", ADD_TENANT, url, name], check=True)
            assert (tmp_path / "a.db-wal").exists()
        await second.number_tenants(["d"])
        assert await first.tenants() == {"a": 1, "b": 2, "c": 3, "d": 4}


async def test_a_file_that_another_holds_for_too_long_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.state.sqlite._BUSY_S", 0.1)
    path = tmp_path / "a.db"
    async with await open_store(f"sqlite:///{path}") as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="database is locked"):
            await store.number_tenants(["a"])
        assert await store.tenants() == {}  # readers go on
        other.execute("ROLLBACK")
        other.close()
        assert await store.number_tenants(["a"]) == {"a": 1}


async def test_a_wrong_password_is_said_and_not_shown(postgres: PostgresServer) -> None:
    with pytest.raises(StateError, match="password authentication failed") as caught:
        await open_store(postgres.url(password="wrong-" + PASSWORD))
    check(caught.value)


async def test_a_database_that_is_not_there_is_said(postgres: PostgresServer) -> None:
    with pytest.raises(StateError, match='database "nothing" does not exist') as caught:
        await open_store(postgres.url("nothing"))
    check(caught.value)


async def test_no_server_is_said(unused_tcp_port: int) -> None:
    with pytest.raises(StateError, match="cannot be opened") as caught:
        await open_store(f"postgresql://airi:{PASSWORD}@127.0.0.1:{unused_tcp_port}/airi")
    check(caught.value)


async def test_a_server_that_comes_back_is_used_again(postgres: PostgresServer) -> None:
    store = await open_store(postgres.url())
    try:
        numbers = await store.number_tenants(["a"])
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(StateError) as caught:
                await store.changes()
            check(caught.value)
        finally:
            await asyncio.to_thread(postgres.start)
        assert await store.tenants() == numbers
    finally:
        await store.close()


def test_the_state_is_imported_without_a_driver() -> None:
    code = (
        "import sys, airi.state, airi.policy\n"
        "print([m for m in ('asyncpg', 'sqlite3', 'jwt', 'cryptography', 'starlette', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
