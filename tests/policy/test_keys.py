"""Keys: made, shown once, ended."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from airi.errors import ConfigError
from airi.policy.keys import create_key, digest_of, key_id_of, list_keys, revoke_key, rotate_key
from airi.state import Store, open_store

NOW = 1_000_000
DAY = 86_400


@pytest_asyncio.fixture
async def store(make_state_url: Callable[[str], str]) -> AsyncIterator[Store]:
    async with await open_store(make_state_url("sqlite")) as opened:
        yield opened


async def test_a_key_reads_prefix_id_secret(store: Store) -> None:
    new = await create_key(store, "acme", prefix="sk-acme", now=NOW)
    match = re.fullmatch(r"sk-acme-([a-z0-9]{12})-[A-Za-z0-9]{43}", new.text)
    assert match is not None
    assert match[1] == new.record.id
    assert new.record.created == NOW
    assert new.record.expires is None


async def test_no_two_keys_are_alike(store: Store) -> None:
    keys = [await create_key(store, "acme") for _ in range(50)]
    for part in (0, 1):
        assert len({key.text.rsplit("-", 2)[1 + part] for key in keys}) == 50


async def test_neither_the_secret_nor_the_key_reaches_the_database(store: Store, tmp_path: Path) -> None:
    new = await create_key(store, "acme")
    secret = new.text.rsplit("-", 1)[1].encode()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert new.record.id.encode() in kept
    assert secret not in kept
    assert digest_of(new.text.encode()).hex().encode() in kept
    for shown in (repr(new), str(new), repr(new.record), repr(await list_keys(store))):
        assert secret.decode() not in shown
        assert new.record.digest not in shown


async def test_a_list_is_of_all_tenants_or_of_one(store: Store) -> None:
    keys = [await create_key(store, name, now=NOW + i) for i, name in enumerate(["a", "b", "a"])]
    assert [key.id for key in await list_keys(store)] == [key.record.id for key in keys]
    assert [key.id for key in await list_keys(store, tenant="b")] == [keys[1].record.id]
    assert await list_keys(store, tenant="c") == []


async def test_a_successor_lives_as_long_as_its_key_did_unless_told(store: Store) -> None:
    old = await create_key(store, "acme", prefix="sk-acme", lifetime_s=90 * DAY, now=NOW)
    first = await rotate_key(store, old.record.id, overlap_s=DAY, now=NOW + DAY)
    assert first.record.expires == NOW + DAY + 90 * DAY
    assert first.text.startswith("sk-acme-")
    second = await rotate_key(store, first.record.id, overlap_s=0, lifetime_s=60, now=NOW + DAY)
    assert second.record.expires == NOW + DAY + 60
    states = {key.id: key.state(NOW + DAY) for key in await list_keys(store)}
    assert states == {old.record.id: "rotated", first.record.id: "retired", second.record.id: "active"}


async def test_an_overlap_does_not_outlive_the_key(store: Store) -> None:
    old = await create_key(store, "acme", lifetime_s=60, now=NOW)
    await rotate_key(store, old.record.id, overlap_s=DAY, now=NOW)
    kept = await store.key(old.record.id)
    assert kept is not None
    assert kept.ends == NOW + 60
    assert [kept.state(NOW + t) for t in (0, 59, 60)] == ["rotated", "rotated", "expired"]


@pytest.mark.parametrize("state", ["revoked", "rotated", "retired", "expired"])
async def test_only_an_active_key_is_rotated(store: Store, state: str) -> None:
    key = await create_key(store, "acme", lifetime_s=60 if state == "expired" else None, now=NOW)
    if state == "revoked":
        await revoke_key(store, key.record.id, now=NOW + 1)
    elif state != "expired":
        await rotate_key(store, key.record.id, overlap_s=DAY if state == "rotated" else 0, now=NOW + 1)
    with pytest.raises(ConfigError, match=f"key {key.record.id} is {state}; only an active key"):
        await rotate_key(store, key.record.id, overlap_s=0, now=NOW + 100)


async def test_revoking_again_changes_nothing(store: Store) -> None:
    key = await create_key(store, "acme", now=NOW)
    assert (await revoke_key(store, key.record.id, now=NOW + 1)).revoked == NOW + 1
    assert (await revoke_key(store, key.record.id, now=NOW + 9)).revoked == NOW + 1


async def test_unknown_ids_are_said(store: Store) -> None:
    for failing in (revoke_key(store, "a" * 12), rotate_key(store, "a" * 12, overlap_s=0)):
        with pytest.raises(ConfigError, match=r"key aaaaaaaaaaaa is not known; `airi keys list` shows all"):
            await failing


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tenant": ""}, "tenant is ''"),
        ({"tenant": "a b"}, "tenant is 'a b'"),
        ({"tenant": "flag:1"}, "tenant is 'flag:1'"),
        ({"tenant": "anyone"}, "not 'anyone'"),
        ({"tenant": "a" * 64}, "1 to 63"),
        ({"prefix": ""}, "key_prefix is ''"),
        ({"prefix": "sk.x"}, r"key_prefix is 'sk\.x'"),
        ({"lifetime_s": 0}, "expires is 0 s"),
        ({"lifetime_s": -5}, "expires is -5 s"),
        ({"lifetime_s": 10**10}, "less than 100 years"),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_kept(
    store: Store, given: dict[str, str | int], says: str
) -> None:
    settings: dict[str, object] = {"tenant": "acme", **given}
    with pytest.raises(ConfigError, match=says):
        await create_key(store, **settings)  # type: ignore[arg-type]
    assert await list_keys(store) == []
    assert await store.tenants() == {}


async def test_a_key_names_itself_and_what_is_no_id_is_not_repeated(store: Store) -> None:
    new = await create_key(store, "acme", prefix="sk-acme-prod")
    assert key_id_of(f" {new.text}\n") == new.record.id
    assert key_id_of(new.record.id) == new.record.id
    for wrong in (new.text[:-1], new.text + "x", new.text.rsplit("-", 1)[1], "", "A" * 12):
        with pytest.raises(ConfigError, match="no id") as caught:
            key_id_of(wrong)
        assert not wrong or wrong not in str(caught.value)
