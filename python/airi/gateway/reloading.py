"""SIGHUP reads the config again. The parts of the gateway that a config may change while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from airi.transport import EngineClient

if TYPE_CHECKING:
    from airi.config import Config, ConfigFile

__all__ = ["Hangup", "TenantNumbers", "TenantWeights"]


class Hangup:
    """Turns SIGHUP into a reload; one that comes before anything serves is remembered.

    *Thread safety*: none; lives on the main thread's event loop.
    """

    def __init__(self) -> None:
        self._reload: Callable[[], Awaitable[object]] | None = None
        self._tasks: set[asyncio.Future[object]] = set()
        self.requested = False

    def reloads(self, reload: Callable[[], Awaitable[object]]) -> None:
        """From now on a signal calls this; at once where one has come before."""
        self._reload = reload
        if self.requested:
            self()

    def __call__(self) -> None:
        """Handle one signal."""
        self.requested = True
        if self._reload is not None:
            task = asyncio.ensure_future(self._reload())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Hangup]:
        """Handles the signal inside the block, where this thread can."""
        loop = asyncio.get_running_loop()
        handled = False
        try:
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: a test's server
                loop.add_signal_handler(signal.SIGHUP, self)
                handled = True
            yield self
        finally:
            if handled:
                loop.remove_signal_handler(signal.SIGHUP)
            for task in self._tasks:
                task.cancel()


class TenantNumbers:
    """What the core calls tenants: numbers from 1, stable for a name as long as this process lives."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """The number of a tenant, a new one where it has none."""
        return self._numbers.setdefault(name, len(self._numbers) + 1)


class TenantWeights:
    """The part of a reload that tells the engine what tenants are due. A tenant that is gone keeps its weight."""

    name = "the weights of tenants"

    def __init__(self, client: EngineClient, number: Callable[[str], int]) -> None:
        self._client = client
        self._number = number

    async def start(self, config: Config) -> None:
        """Tells the weights of the start; raises ConfigError where the engine refuses one."""
        await self._tell({tenant.name: tenant.weight for tenant in config.tenants if tenant.weight != 1.0})

    async def prepare(self, old: ConfigFile, new: ConfigFile) -> _Weights:
        """What has to be told; the engine hears nothing yet."""
        before = {tenant.name: tenant.weight for tenant in old.config.tenants}
        after = {tenant.name: tenant.weight for tenant in new.config.tenants}
        changed = {name: weight for name, weight in after.items() if before.get(name, 1.0) != weight}
        return _Weights(self._tell, changed, {name: before.get(name, 1.0) for name in changed})

    async def _tell(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            await self._client.set_tenant(self._number(name), weight)


class _Weights:
    def __init__(
        self,
        tell: Callable[[Mapping[str, float]], Awaitable[None]],
        after: Mapping[str, float],
        before: Mapping[str, float],
    ) -> None:
        self._tell, self._after, self._before = tell, after, before
        self._begun = False

    async def commit(self) -> None:
        """Tells the engine."""
        self._begun = True
        await self._tell(self._after)

    async def undo(self) -> None:
        """Tells it what held before, where it was told anything."""
        if self._begun:
            await self._tell(self._before)
