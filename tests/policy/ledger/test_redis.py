"""What only a shared ledger can go through: a server that forgets its scripts, dies, evicts, or answers late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from airi.errors import ConfigError, LedgerUnavailableError
from airi.policy.ledger import (
    Budget,
    Demand,
    LimitName,
    Limits,
    LimitTable,
    RedisLedger,
    Refused,
    Reservation,
    Scope,
    connect,
)
from airi.policy.ledger.script import Script
from tests.policy.ledger.drivers import RedisDriver
from tests.policy.ledger.model import EVERYTHING, OTHER, TABLE
from tests.policy.redis_server import RedisServer, running_redis

SCOPE = Scope(tenant="a")
LIMITS = LimitTable(
    {SCOPE: Limits(requests_per_minute=100, max_parallel_requests=2, budget=Budget(amount_micro=1000))}
)


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def ledger(redis: Redis, redis_server: RedisServer) -> AsyncIterator[RedisLedger]:
    shared = RedisLedger(LIMITS, connect(redis_server.url))
    await shared.open()
    yield shared
    await shared.close()


async def granted(ledger: RedisLedger, **demand: int) -> Reservation:
    outcome = await ledger.reserve([SCOPE], Demand(**demand))
    assert isinstance(outcome, Reservation)
    return outcome


async def left(ledger: RedisLedger, name: LimitName = LimitName.BUDGET) -> int:
    return next(one.remaining for one in await ledger.remaining([SCOPE]) if one.name is name)


async def test_a_server_that_forgot_the_script_is_given_it_again(ledger: RedisLedger, redis: Redis) -> None:
    first = await granted(ledger, cost_micro=10)
    await redis.script_flush()
    outcomes = await asyncio.gather(
        granted(ledger, cost_micro=20), ledger.settle(first, Demand(cost_micro=5))
    )
    assert outcomes[1]
    assert await left(ledger) == 1000 - 25


async def test_all_keys_of_a_tenant_are_in_one_slot_of_a_cluster(
    redis: Redis, redis_server: RedisServer
) -> None:
    shared = RedisLedger(TABLE, connect(redis_server.url), prefix="limits")
    for scopes in (EVERYTHING, (OTHER,)):
        assert isinstance(await shared.reserve(scopes, Demand(input_tokens=1, cost_micro=1)), Reservation)
    await shared.close()
    keys: list[Any] = await redis.keys()
    assert all(key.startswith(b"limits:{") for key in keys)
    slots = {key_slot(key) for key in keys}
    assert len(slots) == len({key[: key.index(b"}")] for key in keys}) == 2


def test_a_server_that_forgot_the_time_does_not_bring_a_period_back(redis_server: RedisServer) -> None:
    limits = LimitTable({SCOPE: Limits(budget=Budget(amount_micro=10, period_s=60))})
    driver = RedisDriver(limits, 10**7, redis_server.url, gateways=1)
    for now in (1_790_000_000_000_000, 1_790_000_060_000_000):
        driver.set_time(now)
        assert isinstance(driver.reserve(0, (SCOPE,), Demand(cost_micro=10)), Reservation)
    driver.forget_clocks()
    driver.set_time(1_790_000_000_000_000)
    assert isinstance(driver.reserve(0, (SCOPE,), Demand(cost_micro=1)), Refused)
    driver.close()


async def test_tenants_whose_names_have_braces_or_colons_do_not_meet(redis_server: RedisServer) -> None:
    names = ["a}", "a", "a}:*", "*", "{a}", "a:*"]
    scopes = [Scope(tenant=name) for name in names] + [
        Scope(tenant="a", model="*"),
        Scope(tenant="a", model="m:x"),
    ]
    limits = LimitTable(dict.fromkeys(scopes, Limits(requests_per_minute=1)))
    shared = RedisLedger(limits, connect(redis_server.url), prefix="braces")
    for scope in scopes:
        assert isinstance(await shared.reserve([scope], Demand()), Reservation), scope
        assert isinstance(await shared.reserve([scope], Demand()), Refused), scope
    await shared.close()


async def test_scopes_of_two_tenants_are_no_request(ledger: RedisLedger) -> None:
    await ledger.set_limits(LimitTable({SCOPE: Limits(), Scope(tenant="b"): Limits()}))
    with pytest.raises(ValueError, match="one tenant"):
        await ledger.reserve([SCOPE, Scope(tenant="b")], Demand())
    with pytest.raises(ValueError, match="no limits are set for tenant 'c'"):
        await ledger.reserve([Scope(tenant="c")], Demand())
    with pytest.raises(ValueError, match="twice"):
        await ledger.reserve([SCOPE, SCOPE], Demand())


async def test_without_scopes_nothing_is_limited_and_no_server_asked() -> None:
    ledger = RedisLedger(LIMITS, connect("redis://127.0.0.1:1"))
    reservation = await ledger.reserve([], Demand(input_tokens=10**9))
    assert isinstance(reservation, Reservation)
    assert await ledger.charge_device(reservation, 5) is None
    assert await ledger.renew([reservation]) == []
    assert await ledger.remaining([]) == ()
    assert await ledger.settle(reservation, Demand())
    await ledger.close()


async def test_the_places_of_a_gateway_that_died_come_back_and_its_money_does_not(
    ledger: RedisLedger, redis_server: RedisServer
) -> None:
    dying = RedisLedger(LIMITS, connect(redis_server.url), lease_s=0.3)
    held = [await granted(dying, cost_micro=300) for _ in range(2)]
    refused = await ledger.reserve([SCOPE], Demand())
    assert isinstance(refused, Refused)
    assert refused.name is LimitName.PARALLEL
    assert refused.retry_after_us is not None
    await asyncio.sleep(refused.retry_after_us / 1e6 + 0.05)
    await granted(ledger, cost_micro=400)
    assert await left(ledger) == 0
    assert not await dying.settle(held[0], Demand())
    assert await left(ledger) == 0
    await dying.close()


async def test_leases_are_renewed_by_a_task_while_their_requests_live(
    redis_server: RedisServer, redis: Redis
) -> None:
    shared = RedisLedger(LIMITS, connect(redis_server.url), lease_s=0.3)
    await shared.open()
    reservation = await granted(shared)
    await asyncio.sleep(1)
    assert await left(shared, LimitName.PARALLEL) == 1
    assert await shared.settle(reservation, Demand())
    await shared.close()


async def test_many_leases_are_renewed_and_those_that_ended_are_told(
    redis_server: RedisServer, redis: Redis
) -> None:
    limits = LimitTable({SCOPE: Limits(max_parallel_requests=1000)})
    shared = RedisLedger(limits, connect(redis_server.url))
    held = await asyncio.gather(*(granted(shared) for _ in range(600)))
    gone = held[7]
    await redis.zrem("airi:{a}:leases", gone.id)
    assert await shared.renew() == [gone]
    assert await shared.renew() == []
    assert not await shared.settle(gone, Demand())
    await shared.close()


async def test_who_leaves_before_the_answer_holds_nothing(ledger: RedisLedger) -> None:
    for turns in range(12):
        waiting = asyncio.create_task(ledger.reserve([SCOPE], Demand(cost_micro=1000)))
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            await ledger.settle(waiting.result(), Demand(requests=0))  # type: ignore[arg-type]
        await ledger.remaining([SCOPE])
        assert await left(ledger) == 1000
        assert await left(ledger, LimitName.PARALLEL) == 2


async def test_what_a_reload_took_away_meanwhile_ends_no_request(ledger: RedisLedger, redis: Redis) -> None:
    def limited(device_us: int) -> LimitTable:
        return LimitTable({SCOPE: Limits(device_seconds=Budget(amount_micro=device_us))})

    for then, over in (
        (LimitTable({SCOPE: Limits()}), 0),
        (LIMITS, 0),
        (limited(500), 0),
        (limited(300), 300),
    ):
        await redis.flushall()
        await ledger.set_limits(limited(100))
        reservation = await granted(ledger)
        charging = asyncio.create_task(ledger.charge_device(reservation, 400))
        await asyncio.sleep(0)  # it is on its way
        await ledger.set_limits(then)
        found = await charging
        assert (0 if found is None else found.limit) == over
        await ledger.settle(reservation, Demand())
        await ledger.set_limits(limited(1000))
        assert await left(ledger, LimitName.DEVICE) == 600


async def test_calls_at_once_are_answered_each_with_its_own(ledger: RedisLedger) -> None:
    await ledger.set_limits(LimitTable({SCOPE: Limits(requests_per_minute=200)}))
    outcomes = await asyncio.gather(*(ledger.reserve([SCOPE], Demand()) for _ in range(300)))
    reservations = [outcome for outcome in outcomes if isinstance(outcome, Reservation)]
    assert len(reservations) == 200
    assert sorted(r.usages[0].requests for r in reservations) == list(range(1, 201))


async def test_without_a_server_nothing_is_admitted(redis_installed: None) -> None:
    with running_redis() as server:
        shared = RedisLedger(LIMITS, connect(server.url, timeout_s=0.5))
        await shared.open()
        reservation = await granted(shared, cost_micro=10)
        server.kill()
        message = r"limits cannot be counted: the Redis for shared_counters fails with ConnectionError$"
        for call in (
            shared.reserve([SCOPE], Demand()),
            shared.renew(),
            shared.remaining([SCOPE]),
            shared.settle(reservation, Demand()),
        ):
            with pytest.raises(LedgerUnavailableError, match=message):
                await call
        server.start()
        assert await left(shared) == 1000, "a server without persistence has forgotten everything"
        await shared.close()
    with pytest.raises(LedgerUnavailableError):
        await RedisLedger(LIMITS, connect(server.url)).open()


async def test_a_server_that_appends_always_forgets_nothing_when_it_crashes(redis_installed: None) -> None:
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        shared = RedisLedger(LIMITS, connect(server.url))
        await shared.open()
        reservation = await granted(shared, cost_micro=600)
        server.kill()
        await asyncio.sleep(0.05)  # the connection's end is seen
        server.start()
        refused = await shared.reserve([SCOPE], Demand(cost_micro=401))
        assert isinstance(refused, Refused)
        assert await shared.settle(reservation, Demand(cost_micro=100))
        assert await left(shared) == 900
        await shared.close()


async def test_a_server_that_is_too_slow_admits_nothing(redis_server: RedisServer, redis: Redis) -> None:
    shared = RedisLedger(LIMITS, connect(redis_server.url, timeout_s=0.1))
    await granted(shared)
    await redis.client_pause(1000)
    with pytest.raises(LedgerUnavailableError, match="TimeoutError"):
        await shared.reserve([SCOPE], Demand())
    await redis.client_unpause()
    await shared.close()


async def test_a_server_that_may_evict_counts_is_refused(redis_installed: None) -> None:
    with running_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        shared = RedisLedger(LIMITS, connect(server.url))
        with pytest.raises(ConfigError, match="maxmemory-policy 'allkeys-lru'; accepted: noeviction"):
            await shared.open()
        await shared.close()


async def test_budgets_on_a_server_without_persistence_are_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    for limits, warned in ((Limits(requests_per_minute=1), 0), (Limits(budget=Budget(amount_micro=1)), 1)):
        shared = RedisLedger(LimitTable({SCOPE: limits}), connect(redis_server.url))
        await shared.open()
        await shared.close()
        assert caplog.text.count("appendonly off: budgets forget what was spent") == warned


async def test_a_server_that_is_full_admits_nothing(redis_installed: None) -> None:
    with running_redis("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        shared = RedisLedger(LIMITS, connect(server.url))
        await shared.open()
        with pytest.raises(LedgerUnavailableError):
            await shared.reserve([SCOPE], Demand())
        await shared.close()


async def test_a_script_of_another_version_runs_beside_this_one(
    redis_server: RedisServer, redis: Redis
) -> None:
    newer = Script(connect(redis_server.url), "return {7}")
    assert await newer.run([b"k"], ["x"]) == [7]
    await newer.close()
    await newer._redis.aclose()


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="redis://"):
        connect("http://127.0.0.1")
