"""From a config to what the gate decides by, and the parts of it that a reload exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from airi.gateway.gate import Government
from airi.policy.decisions import Decider, Resource
from airi.policy.schema import cedar_schema
from airi.transport import ForbidFor

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.config.content import ContentPart
    from airi.config.forbidden import ForbiddenTable
    from airi.config.reload import Prepared
    from airi.forbidden import ForbiddenSet
    from airi.gateway.limits import Limiter
    from airi.gateway.routes import RouteTable
    from airi.policy.ledger import Ledger, LimitTable

__all__ = [
    "ForbiddenPart",
    "LimitsPart",
    "PoliciesPart",
    "RoutesPart",
    "decider_of",
    "open_government",
    "routes_of",
]


class Forbids(Protocol):
    """An engine that keeps answers from forbidden texts, as seen from here."""

    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        """From now on requests may name these sets. Raises ConfigError for what there can be no masks of."""
        ...


def decider_of(
    policies: str | None,
    models: Iterable[str],
    *,
    tasks: Mapping[str, str] = MappingProxyType({}),
    collections: Iterable[Resource] = (),
) -> Decider:
    """What decides by these policies, None for those built in, on calls to these models. Raises ConfigError.

    `tasks`: by model, what it does where that is not to chat; `collections`: those that there are.
    """
    resources = [Resource("Server", "airi")]
    resources += [Resource("Model", name, {"name": name, "task": tasks.get(name, "chat")}) for name in models]
    resources += collections
    return Decider(policies, cedar_schema(), resources)


@asynccontextmanager
async def open_government(config: ConfigFile | None) -> AsyncIterator[tuple[Government, Ledger | None]]:
    """What a config says of who may do what and how much, and the ledger that counts, until the block ends.

    Raises ConfigError, StateError and LedgerUnavailableError for what cannot be used.
    """
    if config is None:
        yield Government(decider_of(None, ())), None
        return
    from airi.config.limits import limit_table

    async with AsyncExitStack() as stack:
        government = Government(
            _decider(config),
            content=_content(config),
            forbidden=_forbidden(config),
            routes=routes_of(config),
        )
        if config.config.observability.audit is not None:
            from airi.policy.audit import AuditLog

            government.audit = AuditLog(config.resolve(config.config.observability.audit))
            stack.callback(government.audit.close)
        ledger = None
        if config.config.tenants:
            table = limit_table(config)
            ledger = await _ledger(config, table, stack)
            government.limiter = _limiter(ledger, table, config)
        yield government, ledger


def routes_of(config: ConfigFile) -> RouteTable | None:
    """None where there are none, whose library is not needed then. Raises ConfigError for a condition that is none."""
    if not config.config.routes:
        return None
    from airi.gateway.routes import RouteTable

    return RouteTable(config)


def _decider(config: ConfigFile) -> Decider:
    tasks = {model.name: model.task for model in config.config.models}
    collections = [
        Resource("Collection", each.name, {"name": each.name, "data_class": each.data_class})
        for each in config.config.collections
    ]
    return decider_of(config.policies, tasks, tasks=tasks, collections=collections)


def _content(config: ConfigFile) -> ContentPart:
    from airi.config.content import ContentPart

    return ContentPart(config)


def _forbidden(config: ConfigFile) -> ForbiddenTable:
    from airi.config.forbidden import ForbiddenTable

    return ForbiddenTable(config)


async def _ledger(config: ConfigFile, table: LimitTable, stack: AsyncExitStack) -> Ledger:
    from airi.policy.ledger import ProcessLedger, RedisLedger, connect

    ledger: Ledger
    if config.config.server.shared_counters is not None:
        redis = connect(config.config.server.shared_counters)
        stack.push_async_callback(redis.aclose)
        ledger = RedisLedger(table, redis)
    else:
        from airi.policy.ledger.state import StateBudgets
        from airi.state import open_store

        store = await stack.enter_async_context(await open_store(config.state))
        ledger = ProcessLedger(table, store=StateBudgets(store))
    await ledger.open()
    stack.push_async_callback(ledger.close)
    return ledger


def _limiter(ledger: Ledger, table: LimitTable, config: ConfigFile) -> Limiter:
    from airi.config.limits import cost_micro
    from airi.gateway.limits import Limiter

    prices = {model.name: model.price for model in config.config.models}

    def cost(model: str, input_tokens: int, output_tokens: int) -> int:
        return cost_micro(prices.get(model), input_tokens=input_tokens, output_tokens=output_tokens)

    return Limiter(ledger, table, cost)


class PoliciesPart:
    """The part of a reload that calls are decided by."""

    name = "policies"

    def __init__(self, government: Government) -> None:
        self._government = government

    async def prepare(self, new: ConfigFile) -> Prepared:
        """Policies that can take the place of those that decide."""
        from airi.config.reload import Prepared

        decider = _decider(new)

        def commit() -> None:
            self._government.decider = decider

        return Prepared(commit=commit)


class RoutesPart:
    """The part of a reload that says which model a route stands for."""

    name = "routes"

    def __init__(self, government: Government) -> None:
        self._government = government

    async def prepare(self, new: ConfigFile) -> Prepared:
        """Routes that can take the place of those that hold."""
        from airi.config.reload import Prepared

        table = await asyncio.to_thread(routes_of, new)

        def commit() -> None:
            self._government.routes = table

        return Prepared(commit=commit)


class ForbiddenPart:
    """The part of a reload that answers are kept from: forbidden texts, of which the engine must know."""

    name = "forbidden texts"

    def __init__(
        self,
        government: Government,
        engine: Forbids,
        *,
        names: Callable[[str], Iterable[str]] = lambda model: (model,),
    ) -> None:
        """`names`: what the engine calls a model, one name for each version that it has."""
        self._government, self._engine, self._names = government, engine, names

    async def tell(self, *more: ForbiddenTable) -> None:
        """Tells the engine of all that hold, and those of `more` tables. Raises ConfigError for what it cannot mask."""
        sets: dict[bytes, tuple[ForbiddenSet, set[str]]] = {}
        for table in (self._government.forbidden, *more):
            for policy, models in () if table is None else table.sets():
                known = sets.setdefault(policy.digest, (policy.forbidden, set()))[1]
                known.update(name for model in models for name in self._names(model))
        if sets:
            await self._engine.forbid(
                [ForbidFor(each, tuple(sorted(models))) for each, models in sets.values()]
            )

    async def prepare(self, new: ConfigFile) -> Prepared:
        """Forbidden texts that can take the place of those that hold, in the engine too.

        It keeps those before until the next reload: calls that began with them may not have reached it yet.
        """
        from airi.config.reload import Prepared

        table = await asyncio.to_thread(_forbidden, new)
        await self.tell(table)

        def commit() -> None:
            self._government.forbidden = table

        return Prepared(commit=commit)


class LimitsPart:
    """The part of a reload that calls are counted by: limits and prices."""

    name = "limits"

    def __init__(self, government: Government, ledger: Ledger) -> None:
        self._government, self._ledger = government, ledger

    async def prepare(self, new: ConfigFile) -> Prepared:
        """Limits that can take the place of those that hold. Raises LedgerUnavailableError."""
        from airi.config.limits import limit_table
        from airi.config.reload import Prepared

        limiter = _limiter(self._ledger, limit_table(new), new)
        replace_limits = await self._ledger.prepare_limits(limiter.table)

        def commit() -> None:
            replace_limits()
            self._government.limiter = limiter

        return Prepared(commit=commit)
