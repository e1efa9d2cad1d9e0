"""The state, over SQLite and over PostgreSQL: the same promises."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import AsyncIterator
from multiprocessing.synchronize import Event

import pytest
import pytest_asyncio

from airi.errors import ConfigError, StateError
from airi.state import Charge, KeyRecord, Store, open_store, tables


@pytest_asyncio.fixture
async def store(state_url: str) -> AsyncIterator[Store]:
    async with await open_store(state_url) as opened:
        yield opened


async def add(store: Store, id: str, *, tenant: str = "acme", expires: int | None = None) -> KeyRecord:
    return await store.add_key(
        id=id, tenant=tenant, prefix="sk", digest=f"digest of {id}", created=100, expires=expires
    )


async def test_tenants_are_numbered_from_one_in_the_order_they_came(store: Store) -> None:
    assert await store.number_tenants(["b", "a", "b"]) == {"b": 1, "a": 2}
    assert await store.number_tenants(["c", "a"]) == {"c": 3, "a": 2}
    assert await store.tenants() == {"b": 1, "a": 2, "c": 3}


async def test_what_is_kept_is_there_after_closing(state_url: str) -> None:
    async with await open_store(state_url) as store:
        await store.number_tenants(["first"])
        key = await add(store, "k1", expires=900)
        await store.spend([Charge(scope="s", period_start=0, micro=7, device_us=2)])
    async with await open_store(state_url) as store:
        assert await store.tenants() == {"first": 1, "acme": 2}
        assert await store.key("k1") == key
        assert (await store.budget("s", 0)).spent_micro == 7


async def test_a_key_names_its_tenants_number_and_all_it_was_given(store: Store) -> None:
    await store.number_tenants(["first"])
    assert await add(store, "k1", expires=900) == KeyRecord(
        id="k1", tenant="acme", number=2, prefix="sk", digest="digest of k1", created=100, expires=900
    )
    assert await store.key("k2") is None


async def test_only_keys_changed_since_a_count_are_read(store: Store) -> None:
    await add(store, "k1")
    await add(store, "k2")
    keys, count = await store.keys()
    assert [key.id for key in keys] == ["k1", "k2"]
    assert await store.keys(since=count) == ([], count)
    assert await store.changes() == count
    await store.revoke_key("k1", at=200)
    keys, later = await store.keys(since=count)
    assert [key.id for key in keys] == ["k1"]
    assert later > count


async def test_a_revoked_key_keeps_its_first_end(store: Store) -> None:
    await add(store, "k1")
    for at in (200, 300):
        revoked = await store.revoke_key("k1", at=at)
        assert revoked is not None
        assert revoked.revoked == 200
    assert await store.revoke_key("nobody", at=200) is None


async def test_a_rotated_key_goes_on_until_it_retires(store: Store) -> None:
    old = await add(store, "k1")
    new = await store.replace_key(old, id="k2", digest="d2", created=150, expires=None, retires=180)
    assert new is not None
    assert (new.tenant, new.number, new.prefix) == (old.tenant, old.number, old.prefix)
    kept = await store.key("k1")
    assert kept is not None
    assert (kept.replaced_by, kept.ends) == ("k2", 180)


@pytest.mark.parametrize("why", ["revoked", "rotated", "expired"])
async def test_a_key_that_has_ended_is_not_rotated_and_nothing_changes(store: Store, why: str) -> None:
    old = await add(store, "k1", expires=150 if why == "expired" else None)
    if why == "revoked":
        await store.revoke_key("k1", at=120)
    elif why == "rotated":
        await store.replace_key(old, id="k2", digest="d2", created=120, expires=None, retires=130)
    before, _ = await store.keys()
    assert await store.replace_key(old, id="k9", digest="d9", created=150, expires=None, retires=200) is None
    after, _ = await store.keys()
    assert after == before


async def test_two_rotations_at_once_give_one_successor(store: Store) -> None:
    old = await add(store, "k1")

    async def rotate(id: str) -> KeyRecord | None:
        return await store.replace_key(old, id=id, digest=id, created=120, expires=None, retires=130)

    results = await asyncio.gather(*(rotate(f"n{i}") for i in range(8)))
    (winner,) = [new for new in results if new is not None]
    kept = await store.key("k1")
    assert kept is not None
    assert kept.replaced_by == winner.id


async def test_the_same_id_or_digest_twice_is_refused_whole(store: Store) -> None:
    await add(store, "k1")
    count = await store.changes()
    with pytest.raises(StateError) as caught:
        await add(store, "k1", tenant="other")
    assert "digest of k1" not in str(caught.value)
    assert await store.changes() == count
    assert "other" not in await store.tenants()


async def test_charges_add_up_and_are_told_in_their_order(store: Store) -> None:
    charges = [
        Charge(scope="b", period_start=0, micro=5, device_us=1),
        Charge(scope="a", period_start=0, micro=3),
        Charge(scope="b", period_start=60, micro=2),
        Charge(scope="b", period_start=0, micro=-1),
    ]
    budgets = await store.spend(charges)
    assert [(b.scope, b.period_start, b.spent_micro, b.device_us) for b in budgets] == [
        ("b", 0, 5, 1),
        ("a", 0, 3, 0),
        ("b", 60, 2, 0),
        ("b", 0, 4, 1),
    ]
    assert await store.spend([]) == []
    assert (await store.budget("never", 0)).spent_micro == 0


async def test_one_store_at_a_time_owns_the_budgets(state_url: str) -> None:
    charge = Charge(scope="s", period_start=0, micro=3)
    async with await open_store(state_url) as first, await open_store(state_url) as second:
        await first.own_budgets()
        await asyncio.gather(first.own_budgets(), first.own_budgets())
        with pytest.raises(StateError, match="is used by another server; several share"):
            await second.own_budgets()
        await first.spend([charge])
        await first.close()
        await second.own_budgets()
        with pytest.raises(StateError, match="closed"):
            await first.own_budgets()
        assert (await second.spend([charge]))[0].spent_micro == 6


async def test_an_owner_that_is_killed_leaves_the_budgets_to_the_next_at_once(state_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    owns = context.Event()
    owner = context.Process(target=_own, args=(state_url, owns))
    owner.start()
    try:
        assert await asyncio.to_thread(owns.wait, 60)
        async with await open_store(state_url) as store:
            with pytest.raises(StateError, match="is used by another server"):
                await store.own_budgets()
    finally:
        owner.kill()
        await asyncio.to_thread(owner.join)
    async with await open_store(state_url) as store:
        for patience in reversed(range(6000)):  # PostgreSQL hears of it a moment later
            try:
                await store.own_budgets()
                break
            except StateError:
                assert patience
                await asyncio.sleep(0.01)
        await store.spend([Charge(scope="s", period_start=0, micro=3)])


@pytest.mark.parametrize("state_url", ["postgresql"], indirect=True)
async def test_an_owner_that_was_cut_off_spends_no_more_once_another_owns(state_url: str) -> None:
    charge = Charge(scope="s", period_start=0, micro=3)
    async with await open_store(state_url) as first, await open_store(state_url) as second:
        await first.own_budgets()
        await _cut_owner_off(first)
        await first.spend([charge])  # which takes the lock again
        with pytest.raises(StateError, match="is used by another server"):
            await second.own_budgets()
        await _cut_owner_off(first)
        await second.own_budgets()
        with pytest.raises(StateError, match="is used by another server"):
            await first.spend([charge])
        await second.close()
        with pytest.raises(StateError, match="is used by another server"):
            await first.spend([charge])  # what the other has spent is not in its counts
        assert (await first.budget("s", 0)).spent_micro == 3


async def _cut_owner_off(store: Store) -> None:
    """Has the server end the connections that hold a lock."""
    await store._read(
        (
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
            (),
        )
    )
    while not store._lock_holder.is_closed():  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)


def _own(url: str, owns: Event) -> None:
    async def main() -> None:
        store = await open_store(url)
        await store.own_budgets()
        owns.set()
        await asyncio.sleep(3600)

    asyncio.run(main())


async def test_old_periods_are_forgotten(store: Store) -> None:
    for scope in ("s", "t", "u"):
        await store.spend([Charge(scope=scope, period_start=at, micro=1) for at in (0, 60, 120)])
    await store.forget_budgets([("t", 120), ("s", 60)])
    await store.forget_budgets([])
    for scope, kept in (("s", [0, 1, 1]), ("t", [0, 0, 1]), ("u", [1, 1, 1])):
        assert [(await store.budget(scope, at)).spent_micro for at in (0, 60, 120)] == kept


@pytest.mark.parametrize("field", ["micro", "device_us"])
def test_a_charge_has_an_end(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} of a charge"):
        Charge(scope="s", period_start=0, **{field: 2**53 + 1})


async def test_a_closed_store_says_so(state_url: str) -> None:
    store = await open_store(state_url)
    await store.close()
    with pytest.raises(StateError, match="closed"):
        await store.changes()
    await store.close()


# -- several processes -------------------------------------------------------------------------


def _work(url: str, worker: int, rounds: int) -> None:
    async def main() -> None:
        async with await open_store(url) as store:
            for i in range(rounds):
                await store.number_tenants([f"tenant {i}"])
                await add(store, f"w{worker} k{i}", tenant=f"tenant {i}")
                await store.spend([Charge(scope=s, period_start=0, micro=1) for s in ("x", "y")])

    asyncio.run(main())


async def test_processes_that_start_at_once_share_one_state(state_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(state_url, i, 12)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join)
    assert [worker.exitcode for worker in workers] == [0] * 4
    async with await open_store(state_url) as store:
        numbers = await store.tenants()
        assert sorted(numbers.values()) == list(range(1, 13))
        keys, _ = await store.keys()
        assert len(keys) == 48
        assert all(key.number == numbers[key.tenant] for key in keys)
        assert (await store.budget("x", 0)).spent_micro == 48


async def test_whoever_follows_the_count_misses_no_change(state_url: str) -> None:
    async with await open_store(state_url) as store, await open_store(state_url) as other:
        seen: set[str] = set()

        async def follow() -> None:
            count = 0
            while len(seen) < 40:
                keys, count = await other.keys(since=count)
                seen.update(key.id for key in keys)

        async with asyncio.timeout(60):
            await asyncio.gather(follow(), *(add(store, f"k{i}", tenant=f"t{i % 3}") for i in range(40)))
    assert seen == {f"k{i}" for i in range(40)}


# -- versions ----------------------------------------------------------------------------------

NEXT = ("CREATE TABLE airi_next (id BIGINT)", "INSERT INTO airi_next (id) VALUES (1)")


async def test_tables_of_an_older_version_are_brought_up_once(
    state_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await open_store(state_url) as store:
        await add(store, "k1")
    monkeypatch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, NEXT])
    stores = await asyncio.gather(*(open_store(state_url) for _ in range(5)))
    for store in stores:
        assert await store._read(("SELECT id FROM airi_next", ())) is not None
        (rows,) = await store._read(("SELECT COUNT(*) FROM airi_next", ()))
        assert tuple(rows[0]) == (1,)
        assert await store.key("k1") is not None
        await store.close()


async def test_a_migration_that_fails_leaves_the_tables_as_they_were(
    state_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await open_store(state_url) as store:
        await add(store, "k1")
    with monkeypatch.context() as patch:
        patch.setattr(
            tables, "MIGRATIONS", [*tables.MIGRATIONS, (*NEXT, "CREATE TABLE airi_keys (id BIGINT)")]
        )
        with pytest.raises(StateError, match="airi_keys"):
            await open_store(state_url)
    monkeypatch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, NEXT])
    async with await open_store(state_url) as store:
        assert await store.key("k1") is not None


async def test_tables_of_a_later_version_are_refused(state_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, NEXT])
        await (await open_store(state_url)).close()
    known = len(tables.MIGRATIONS)
    with pytest.raises(
        StateError,
        match=f"newer AIRI: its tables are of version {known + 1}, this one knows those up to {known}",
    ):
        await open_store(state_url)


# -- crashes -----------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from airi.state import Charge, open_store

async def main():
    async with await open_store(sys.argv[1]) as store:
        for i in range(10_000):
            await store.add_key(id=f"k{i}", tenant=f"t{i}", prefix="sk", digest=f"d{i}", created=0, expires=None)
            await store.spend([Charge(scope=scope, period_start=0, micro=1) for scope in ("x", "y")])
            print(i, flush=True)

asyncio.run(main())
"""


async def test_a_process_that_is_killed_loses_nothing_that_it_was_told_is_kept(state_url: str) -> None:
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, state_url, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    for _ in range(25):
        last = int(await writer.stdout.readline())
    writer.kill()
    last = max([last, *map(int, (await writer.stdout.read()).split())])
    await writer.wait()
    async with await open_store(state_url) as store:
        keys, _ = await store.keys()
        kept = {key.id for key in keys}
        assert kept >= {f"k{i}" for i in range(last + 1)}
        spent = [(await store.budget(scope, 0)).spent_micro for scope in ("x", "y")]
        assert spent[0] == spent[1]  # both or neither
        assert len(kept) - 1 <= spent[0] <= len(kept)
