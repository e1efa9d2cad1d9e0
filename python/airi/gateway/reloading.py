"""SIGHUP reads the config again. The parts of the gateway that a config may change while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.config.reload import Prepared
    from airi.gateway.access import Access
    from airi.policy.tenants import TellsTenants

__all__ = ["Hangup", "TenantsPart"]


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


class TenantsPart:
    """The part of a reload that keys and tokens speak for, and whose weights the engine knows."""

    name = "tenants"

    def __init__(self, access: Access, engine: TellsTenants) -> None:
        self._access = access
        self._engine = engine

    async def prepare(self, new: ConfigFile) -> Prepared:
        """Tenants that can take the place of those that are served, with what they are due told to the engine."""
        from airi.config.options import tenant_options
        from airi.config.reload import Prepared

        tenants = await self._access.prepare(tenant_options(new))
        try:
            await tenants.tell(self._engine)
        except BaseException:
            await self._undo()
            raise
        return Prepared(commit=partial(self._access.use, tenants), undo=self._undo)

    async def _undo(self) -> None:
        """Tells the engine what those are due that are served."""
        await self._access.tell(self._engine)
