"""The ring of keys: who is found, at what cost, how soon changes count."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from airi.errors import StateError
from airi.policy.keys import create_key, digest_of, revoke_key, rotate_key
from airi.policy.principal import Principal
from airi.policy.ring import KeyRing, KeyWatch
from airi.policy.tenants import TenantOptions, Tenants
from airi.state import KeyRecord, open_store

from .conftest import Clock


def record(text: str, **changes: Any) -> KeyRecord:
    fields: dict[str, Any] = {
        "id": f"id of {text}",
        "tenant": "acme",
        "number": 7,
        "prefix": "sk",
        "digest": digest_of(text.encode()).hex(),
        "created": 0,
    }
    return KeyRecord(**{**fields, **changes})


def test_a_key_is_found_with_all_its_tenant_is_due(clock: Clock) -> None:
    tenants = Tenants([TenantOptions(name="acme", groups=("gold",), priority=3, weight=2.0)], {"acme": 7})
    ring = KeyRing(tenants, clock=clock)
    ring.update([record("sk-1")])
    assert ring.find("Bearer sk-1") == Principal(
        tenant="acme", number=7, key_id="id of sk-1", groups=("gold",), priority=3, max_priority=3, weight=2.0
    )
    for header in ("bearer sk-1", "BEARER  sk-1 "):
        assert ring.find(header) is not None
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic sk-1",
        "sk-1",
        "Bearer sk-10",
        "Bearer sk-1 x",
        "Bearer SK-1",
    ):
        assert ring.find(wrong) is None


def test_a_key_ends_when_it_expires_retires_or_is_revoked(clock: Clock) -> None:
    ring = KeyRing(Tenants(), clock=clock)
    end = int(clock.now) + 10
    ends = ({"expires": end}, {"retires": end}, {"revoked": end}, {"expires": end + 5, "retires": end})
    for change in ends:
        clock.now = end - 10
        ring.update([record("sk-1", **change)])
        for now, accepted in ((end - 0.001, True), (end, False), (end + 100, False)):
            clock.now = now
            assert (ring.find("Bearer sk-1") is not None) == accepted


def test_a_change_takes_the_place_of_what_was_known(clock: Clock) -> None:
    ring = KeyRing(Tenants(), clock=clock)
    ring.update([record("sk-1"), record("sk-2")])
    ring.update([record("sk-1", revoked=5)])
    assert ring.find("Bearer sk-1") is None
    assert ring.find("Bearer sk-2") is not None


def test_where_tenants_are_listed_no_other_is_served(clock: Clock) -> None:
    ring = KeyRing(Tenants([TenantOptions(name="acme")], {"acme": 7}), clock=clock)
    ring.update([record("sk-1"), record("sk-2", tenant="gone", number=8)])
    assert ring.find("Bearer sk-2") is None
    ring.use(Tenants([TenantOptions(name="gone", priority=1)], {"acme": 7, "gone": 8}))
    assert ring.find("Bearer sk-1") is None
    found = ring.find("Bearer sk-2")
    assert found is not None
    assert (found.number, found.priority) == (8, 1)


def test_keys_given_at_the_start_are_tenants_of_their_own() -> None:
    ring = KeyRing(Tenants(), ["sk-one", " schlüssel 🔑 ", "sk-one"])
    sent = "Bearer schlüssel 🔑".encode().decode("latin-1")  # headers are read so
    found = [ring.find("Bearer sk-one"), ring.find(sent), ring.find("Bearer sk-two")]
    assert [None if one is None else (one.tenant, one.number) for one in found] == [
        ("flag:1", 1),
        ("flag:2", 2),
        None,
    ]
    ring.use(Tenants([TenantOptions(name="acme")], {"flag:1": 5, "flag:2": 6}))
    assert [one and one.number for one in map(ring.find, ("Bearer sk-one", sent))] == [5, 6]


def test_a_header_that_no_client_sends_is_no_error() -> None:
    ring = KeyRing(Tenants(), ["sk-one"])
    for header in ("Bearer \U0001f511", "Bearer \x00", "\ud800 \ud800", "Bearer " + "x" * 100_000):
        assert ring.find(header) is None


# -- constant work -----------------------------------------------------------------------------


def work_of(call: Callable[[], object]) -> Counter[str]:
    """What a call does: every bytecode instruction by its place, every C function by its name."""
    seen: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen[f"{frame.f_code.co_qualname}:{frame.f_lasti}"] += 1
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument is not sys.setprofile:
            seen[f"C {argument.__qualname__}"] += 1

    before = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    for name in ("C settrace", "C gettrace"):
        seen.pop(name, None)
    return seen


def test_whatever_is_wrong_with_a_key_the_same_work_is_done(clock: Clock) -> None:
    ring = KeyRing(Tenants([TenantOptions(name="acme")], {"acme": 7}), ["sk-flag"], clock=clock)
    key = "sk-acme-{}-" + "s" * 43
    texts = {name: key.format(name * 12) for name in "abcdef"}
    ring.update(
        [
            record(texts["a"]),
            record(texts["b"], revoked=5),
            record(texts["c"], expires=int(clock.now) + 5),
            record(texts["d"], retires=5),
            record(texts["e"], tenant="foreign"),
        ]
    )
    clock.now += 10
    wrong = {
        "revoked": texts["b"],
        "expired since": texts["c"],
        "retired": texts["d"],
        "of a tenant that is not served": texts["e"],
        "unknown": texts["f"],
        "wrong secret": texts["a"][:-1] + "t",
        "wrong prefix": texts["a"].replace("acme", "acne"),
        "of another form": "sk-flag2",
        "empty": "",
    }
    ring.find("Bearer x")  # what the interpreter specialises on the first calls is not the question
    work = {name: work_of(lambda text=text: ring.find(f"Bearer {text}")) for name, text in wrong.items()}  # type: ignore[misc]
    assert all(ring.find(f"Bearer {text}") is None for text in wrong.values())
    counts = work.pop("unknown")
    assert counts["C openssl_sha256"] == 1
    assert counts["C compare_digest"] == 1
    assert sum(counts.values()) > 30
    for name, other in work.items():
        assert other == counts, name
    assert ring.find(f"Bearer {texts['a']}") is not None


# -- changes -----------------------------------------------------------------------------------


async def seen_soon(condition: Callable[[], bool]) -> None:
    """Waits without a gate on speed: only a hang fails."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_changes_of_another_process_count_soon(state_url: str) -> None:
    async with await open_store(state_url) as store, await open_store(state_url) as other:
        first = await create_key(other, "acme")
        ring = KeyRing(Tenants())
        async with KeyWatch(store, ring, interval_s=0.01):
            assert ring.find(f"Bearer {first.text}") is not None  # read before anything is served
            second = await rotate_key(other, first.record.id, overlap_s=3600)
            await seen_soon(lambda: ring.find(f"Bearer {second.text}") is not None)
            assert ring.find(f"Bearer {first.text}") is not None
            for new in (first, second):
                await revoke_key(other, new.record.id)
                await seen_soon(lambda new=new: ring.find(f"Bearer {new.text}") is None)  # type: ignore[misc]


class BrokenStore:
    """Fails when told to, and counts what it is asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.since: list[int] = []
        self.answer: tuple[list[KeyRecord], int] = ([record("sk-1")], 4)

    async def keys(self, *, since: int) -> tuple[list[KeyRecord], int]:
        self.since.append(since)
        if self.error is not None:
            raise self.error
        return self.answer


async def test_keys_go_on_working_while_the_state_is_away(caplog: pytest.LogCaptureFixture) -> None:
    store = BrokenStore()
    ring = KeyRing(Tenants())
    async with KeyWatch(store, ring, interval_s=0.001):  # type: ignore[arg-type]
        for error in (StateError("state x: no server answers"), ZeroDivisionError("secret")):
            caplog.clear()
            store.error = error
            asked = len(store.since)
            await seen_soon(lambda: len(store.since) > asked + 3)  # noqa: B023
            assert ring.find("Bearer sk-1") is not None
            store.error, store.answer = None, ([record("sk-2")], 9)
            await seen_soon(lambda: "refreshed again" in caplog.text)
            # Said once, however long it lasted.
            assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.WARNING]
            assert "secret" not in caplog.text
        assert ring.find("Bearer sk-2") is not None
        asked = len(store.since)
        await seen_soon(lambda: len(store.since) > asked + 1)
    assert store.since[0] == 0
    assert store.since[-1] == 9


async def test_a_state_that_cannot_be_read_at_the_start_is_an_error() -> None:
    store = BrokenStore()
    store.error = StateError("state x: no server answers")
    with pytest.raises(StateError, match="no server answers"):
        async with KeyWatch(store, KeyRing(Tenants())):  # type: ignore[arg-type]
            pass
