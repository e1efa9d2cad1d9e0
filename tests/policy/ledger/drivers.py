"""Both ledgers behind one face, with time that a test sets and gateways that it can crash."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from redis.asyncio import Redis

from airi.errors import LedgerUnavailableError
from airi.policy.ledger import (
    Demand,
    LimitTable,
    LocalLedger,
    RedisLedger,
    Refused,
    Remaining,
    Reservation,
    Scope,
    connect,
)
from airi.policy.ledger.script import Script, script_text
from tests.policy.redis_server import RedisServer

T = TypeVar("T")

NOW_KEY = "test-now"
_TIME = "local time = redis.call('TIME')"
_SET_TIME = f"""local set = redis.call('GET', '{NOW_KEY}')
local time = {{string.sub(set, 1, -7), string.sub(set, -6)}}"""


def script_with_set_time() -> str:
    """The ledger's script, but the time is what the test wrote."""
    text = script_text()
    assert text.count(_TIME) == 1
    return text.replace(_TIME, _SET_TIME)


class Driver(Protocol):
    """A ledger that several gateways use. `gateway` is the one that does it."""

    clock_per_tenant: bool

    def set_time(self, now: int) -> None: ...

    def set_limits(self, table: LimitTable) -> None: ...

    def reserve(self, gateway: int, scopes: tuple[Scope, ...], demand: Demand) -> Reservation | Refused: ...

    def settle(self, gateway: int, reservation: Reservation, used: Demand, device_us: int) -> bool: ...

    def charge_device(self, gateway: int, reservation: Reservation, device_us: int) -> Remaining | None: ...

    def renew(self, gateway: int, reservations: Sequence[Reservation]) -> list[Reservation]: ...

    def remaining(self, gateway: int, scopes: tuple[Scope, ...]) -> tuple[Remaining, ...]: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class LocalDriver:
    """The in-process ledger; its gateways only share it."""

    clock_per_tenant = False

    def __init__(self, table: LimitTable, lease_us: int) -> None:
        self.ledger = LocalLedger(table, lease_us=lease_us)
        self._now = 0

    def set_time(self, now: int) -> None:
        self._now = now

    def set_limits(self, table: LimitTable) -> None:
        self.ledger.set_limits(table)

    def reserve(self, gateway: int, scopes: tuple[Scope, ...], demand: Demand) -> Reservation | Refused:
        return self.ledger.reserve(scopes, demand, self._now)

    def settle(self, gateway: int, reservation: Reservation, used: Demand, device_us: int) -> bool:
        return self.ledger.settle(reservation, used, device_us, self._now)

    def charge_device(self, gateway: int, reservation: Reservation, device_us: int) -> Remaining | None:
        return self.ledger.charge_device(reservation, device_us, self._now)

    def renew(self, gateway: int, reservations: Sequence[Reservation]) -> list[Reservation]:
        return self.ledger.renew(reservations, self._now)

    def remaining(self, gateway: int, scopes: tuple[Scope, ...]) -> tuple[Remaining, ...]:
        return self.ledger.remaining(scopes, self._now)

    def check(self) -> None:
        self.ledger.check_invariants()

    def close(self) -> None:
        pass


class RedisDriver:
    """Gateways that each have a ledger and a connection of their own, on one server whose time the test sets."""

    clock_per_tenant = True

    def __init__(self, table: LimitTable, lease_us: int, url: str, gateways: int) -> None:
        self._runner = asyncio.Runner()
        self._url, self._table, self._lease_s = url, table, lease_us / 1e6
        self._admin: Redis = connect(url)
        self._run(self._clear())
        self.ledgers = [self._new_ledger() for _ in range(gateways)]

    def _new_ledger(self) -> RedisLedger:
        redis = connect(self._url)
        script = Script(redis, script_with_set_time())
        return RedisLedger(self._table, redis, lease_s=self._lease_s, script=script)

    def replace_gateway(self, gateway: int) -> None:
        """One that knows nothing of what the one before it held."""
        old, self.ledgers[gateway] = self.ledgers[gateway], self._new_ledger()
        self._run(old.close())

    def killed_during(self, server: RedisServer, work: Sequence[Coroutine[Any, Any, object]]) -> list[object]:
        """Kills the server while these are under way and starts it again: what they gave or raised."""
        return self._run(self._killed_during(server, work))

    async def _killed_during(
        self, server: RedisServer, work: Sequence[Coroutine[Any, Any, object]]
    ) -> list[object]:
        tasks = [asyncio.create_task(one) for one in work]
        for _ in range(10):  # they are on their way, and maybe answered
            await asyncio.sleep(0)
        server.kill()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        server.start()
        for client in (self._admin, *(ledger._redis for ledger in self.ledgers)):
            await client.connection_pool.disconnect()
        unexpected = [o for o in outcomes if isinstance(o, Exception)]
        assert all(isinstance(one, LedgerUnavailableError) for one in unexpected), unexpected
        return list(outcomes)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def set_time(self, now: int) -> None:
        self._run(self._write_time(now))

    def set_limits(self, table: LimitTable) -> None:
        self._table = table
        for ledger in self.ledgers:
            self._run(ledger.set_limits(table))

    async def _clear(self) -> None:
        await self._admin.flushall()

    async def _write_time(self, now: int) -> None:
        await self._admin.set(NOW_KEY, now)

    def reserve(self, gateway: int, scopes: tuple[Scope, ...], demand: Demand) -> Reservation | Refused:
        return self._run(self.ledgers[gateway].reserve(scopes, demand))

    def settle(self, gateway: int, reservation: Reservation, used: Demand, device_us: int) -> bool:
        return self._run(self.ledgers[gateway].settle(reservation, used, device_us))

    def charge_device(self, gateway: int, reservation: Reservation, device_us: int) -> Remaining | None:
        return self._run(self.ledgers[gateway].charge_device(reservation, device_us))

    def renew(self, gateway: int, reservations: Sequence[Reservation]) -> list[Reservation]:
        return self._run(self.ledgers[gateway].renew(reservations))

    def remaining(self, gateway: int, scopes: tuple[Scope, ...]) -> tuple[Remaining, ...]:
        return self._run(self.ledgers[gateway].remaining(scopes))

    def forget_clocks(self) -> None:
        """As when no call came for a day."""
        self._run(self._forget_clocks())

    async def _forget_clocks(self) -> None:
        await self._admin.delete(*await self._admin.keys("*:clock"))

    def check(self) -> None:
        """Every key but budgets for good expires, and no count is negative."""
        self._run(self._check())

    async def _check(self) -> None:
        keys: list[Any] = await self._admin.keys("airi:*")
        for key in keys:
            lasting = key.endswith((b":money:0", b":device:0"))
            assert (await self._admin.pttl(key) > 0) != lasting, key
            if key.endswith(b":window"):
                values: list[Any] = await self._admin.hvals(key)
                assert all(not part.startswith(b"-") for value in values for part in value.split()), key

    def close(self) -> None:
        for ledger in self.ledgers:
            self._run(ledger.close())
        self._run(self._admin.aclose())
        self._runner.close()
