"""Limits that a reload takes away, under requests that run, and brings back: both ledgers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airi.policy.ledger import Budget, Demand, LimitName, Limits, LimitTable, Reservation, Scope
from tests.policy.ledger.drivers import Driver, LocalDriver, RedisDriver
from tests.policy.redis_server import RedisServer

NOW = 1_790_000_000_000_000
LEASE_US = 10_000_000
SCOPES = Scope(tenant="a"), Scope(tenant="a", model="m")
LIMITS = Limits(
    requests_per_minute=10,
    tokens_per_minute=1000,
    max_parallel_requests=2,
    budget=Budget(amount_micro=1000),
    device_seconds=Budget(amount_micro=1000, period_s=3600),
)
TABLE = LimitTable(dict.fromkeys(SCOPES, LIMITS))
WITHOUT = LimitTable({Scope(tenant="b"): LIMITS})


@pytest.fixture(params=["local", "redis"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made: Driver
    if request.param == "local":
        made = LocalDriver(TABLE, LEASE_US)
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        made = RedisDriver(TABLE, LEASE_US, server.url, gateways=1)
    made.set_time(NOW)
    yield made
    made.close()


def left(driver: Driver) -> list[tuple[int, ...]]:
    """Of requests, tokens, places, money and device time; by scope."""
    names = (
        LimitName.REQUESTS,
        LimitName.TOKENS,
        LimitName.PARALLEL,
        LimitName.BUDGET,
        LimitName.DEVICE,
    )
    found = {(one.scope, one.name): one.remaining for one in driver.remaining(0, SCOPES)}
    return [tuple(found[scope, name] for name in names) for scope in SCOPES]


def granted(driver: Driver) -> Reservation:
    outcome = driver.reserve(0, SCOPES, Demand(input_tokens=100, output_tokens=200, cost_micro=500))
    assert isinstance(outcome, Reservation)
    return outcome


def keep(driver: Driver, reservation: Reservation) -> None:
    assert driver.charge_device(0, reservation, 100) is None


def settle(driver: Driver, reservation: Reservation) -> None:
    assert driver.charge_device(0, reservation, 1400) is None, "without a limit none is used up"
    used = Demand(input_tokens=100, output_tokens=50, cost_micro=200)
    assert driver.settle(0, reservation, used, -900)


@pytest.mark.parametrize(
    ("meanwhile", "then"), [(keep, (9, 700, 1, 500, 900)), (settle, (9, 850, 2, 800, 500))]
)
def test_what_runs_when_its_tenant_is_removed_is_counted_and_given_back(
    driver: Driver, meanwhile: Callable[[Driver, Reservation], None], then: tuple[int, ...]
) -> None:
    reservation = granted(driver)
    driver.set_limits(WITHOUT)
    with pytest.raises(ValueError, match="no limits are set for tenant 'a'"):
        granted(driver)
    meanwhile(driver, reservation)
    driver.check()
    driver.set_limits(TABLE)
    assert left(driver) == [then] * 2
    driver.check()


def test_a_lease_that_ends_meanwhile_gives_its_place_back_and_nothing_else(driver: Driver) -> None:
    reservation = granted(driver)
    driver.set_limits(WITHOUT)
    assert driver.renew(0, [reservation]) == []
    driver.set_time(NOW + LEASE_US)
    assert not driver.settle(0, reservation, Demand(), 0)
    driver.set_limits(TABLE)
    assert left(driver) == [(9, 700, 2, 500, 1000)] * 2
