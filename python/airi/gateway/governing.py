"""From a config to what the gate decides by, and the parts of it that a reload exchanges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from airi.gateway.gate import Government
from airi.policy.decisions import Decider, Resource
from airi.policy.schema import cedar_schema

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.config.reload import Prepared
    from airi.gateway.limits import Limiter
    from airi.policy.ledger import Ledger

__all__ = ["LimitsPart", "PoliciesPart", "decider_of", "open_government"]


def decider_of(policies: str | None, models: Iterable[str]) -> Decider:
    """What decides by these policies, None for those built in, on calls to these models. Raises ConfigError."""
    resources = [Resource("Server", "airi")]
    resources += [Resource("Model", name, {"name": name, "task": "chat"}) for name in models]
    return Decider(policies, cedar_schema(), resources)


@asynccontextmanager
async def open_government(config: ConfigFile | None) -> AsyncIterator[tuple[Government, Ledger | None]]:
    """What a config says of who may do what and how much, and the ledger that counts, until the block ends.

    Raises ConfigError, StateError and LedgerUnavailableError for what cannot be used.
    """
    if config is None:
        yield Government(decider_of(None, ())), None
        return
    async with AsyncExitStack() as stack:
        names = [model.name for model in config.config.models]
        government = Government(decider_of(config.policies, names))
        if config.config.observability.audit is not None:
            from airi.policy.audit import AuditLog

            government.audit = AuditLog(config.resolve(config.config.observability.audit))
            stack.callback(government.audit.close)
        ledger = await _ledger(config, stack)
        if ledger is not None:
            government.limiter = _limiter(ledger, config)
        yield government, ledger


async def _ledger(config: ConfigFile, stack: AsyncExitStack) -> Ledger | None:
    from airi.config.limits import limit_table
    from airi.policy.ledger import ProcessLedger, RedisLedger, connect

    if not config.config.tenants:
        return None
    ledger: Ledger
    if config.config.server.shared_counters is not None:
        redis = connect(config.config.server.shared_counters)
        stack.push_async_callback(redis.aclose)
        ledger = RedisLedger(limit_table(config), redis)
    else:
        from airi.policy.ledger.state import StateBudgets
        from airi.state import open_store

        store = await stack.enter_async_context(await open_store(config.config.server.state))
        ledger = ProcessLedger(limit_table(config), store=StateBudgets(store))
    await ledger.open()
    stack.push_async_callback(ledger.close)
    return ledger


def _limiter(ledger: Ledger, config: ConfigFile) -> Limiter:
    from airi.config.limits import cost_micro, limit_table
    from airi.gateway.limits import Limiter

    prices = {model.name: model.price for model in config.config.models}

    def cost(model: str, input_tokens: int, output_tokens: int) -> int:
        return cost_micro(prices.get(model), input_tokens=input_tokens, output_tokens=output_tokens)

    return Limiter(ledger, limit_table(config), cost)


class PoliciesPart:
    """The part of a reload that calls are decided by."""

    name = "policies"

    def __init__(self, government: Government) -> None:
        self._government = government

    async def prepare(self, old: ConfigFile, new: ConfigFile) -> _NextPolicies:
        """Policies that can take the place of those that decide."""
        decider = decider_of(new.policies, [model.name for model in new.config.models])
        return _NextPolicies(self._government, decider)


class _NextPolicies:
    def __init__(self, government: Government, after: Decider) -> None:
        self._government, self._before, self._after = government, government.decider, after

    async def commit(self) -> None:
        """Decides by these from now on."""
        self._government.decider = self._after

    async def undo(self) -> None:
        """Decides by those before again."""
        self._government.decider = self._before


class LimitsPart:
    """The part of a reload that calls are counted by: limits and prices."""

    name = "limits"

    def __init__(self, government: Government, ledger: Ledger) -> None:
        self._government, self._ledger = government, ledger

    async def prepare(self, old: ConfigFile, new: ConfigFile) -> _NextLimits:
        """Limits that can take the place of those that hold."""
        from airi.config.limits import LimitsPart as TablePart

        exchange = await TablePart(self._ledger).prepare(old, new)
        return _NextLimits(self._government, exchange, _limiter(self._ledger, new))


class _NextLimits:
    def __init__(self, government: Government, exchange: Prepared, after: Limiter) -> None:
        self._government, self._exchange, self._after = government, exchange, after
        self._before = government.limiter

    async def commit(self) -> None:
        """Counts by these from now on. Raises LedgerUnavailableError."""
        await self._exchange.commit()
        self._government.limiter = self._after

    async def undo(self) -> None:
        """Counts by those before again."""
        await self._exchange.undo()
        self._government.limiter = self._before
