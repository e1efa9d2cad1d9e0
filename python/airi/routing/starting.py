"""Starts or reaches the engines of a set, and ends what it has started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from airi.errors import ConfigError
from airi.routing.merging import difference
from airi.routing.replica_set import ReplicaSet
from airi.transport.client import EngineClient, ProgressSink
from airi.transport.supervisor import EngineSupervisor

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions

__all__ = ["reached", "started"]

_GRACE_S = 5.0
"""How long engines are waited for once the first one serves; later ones join when they come."""


@asynccontextmanager
async def started(
    options: Sequence[EngineOptions], *, log_level: str = "warning", on_progress: ProgressSink | None = None
) -> AsyncIterator[asyncio.Task[ReplicaSet]]:
    """Begins to start these engines; their set is there once all serve. They end with the block.

    The task raises as `EngineSupervisor.start`, for the first that cannot. Progress is that of the first engine.
    """
    supervisors = [
        EngineSupervisor(
            each, log_level=log_level, on_progress=None if i else on_progress, waits_for_restart=False
        )
        for i, each in enumerate(options)
    ]

    async def start() -> ReplicaSet:
        return ReplicaSet(await _all([supervisor.start() for supervisor in supervisors]))

    starting = asyncio.create_task(start())
    try:
        yield starting
    finally:
        await _end(starting)
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))


@asynccontextmanager
async def reached(
    endpoints: Sequence[str], *, on_progress: ProgressSink | None = None, retry_window_s: float = 120.0
) -> AsyncIterator[asyncio.Task[ReplicaSet]]:
    """Begins to reach engines that run; their set is there once one of them serves and the others had some time to.

    `retry_window_s` is the set's. The task raises as `EngineClient.connect`, and ConfigError where two serve different
    models under one name.
    """

    async def reach() -> ReplicaSet:
        clients: list[EngineClient] = []
        try:
            clients.extend(
                EngineClient(endpoint, retry_window_s=0, on_progress=on_progress) for endpoint in endpoints
            )
            await _some(clients)
            _check_alike(clients)
        except BaseException:
            for client in clients:
                client.close()
            raise
        return ReplicaSet(clients, retry_window_s=retry_window_s)

    starting = asyncio.create_task(reach())
    try:
        yield starting
    finally:
        await _end(starting)


async def _end(starting: asyncio.Task[ReplicaSet]) -> None:
    if not starting.done():
        starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close()


async def _all(starts: Sequence[Coroutine[Any, Any, EngineClient]]) -> list[EngineClient]:
    """The clients of all; the first error ends the other starts."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


async def _some(clients: Sequence[EngineClient]) -> None:
    """Waits until one serves and the others had a little time to; raises what one says that cannot."""
    waiting = {asyncio.ensure_future(client.wait_ready()) for client in clients}
    try:
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if rest:
            more, _ = await asyncio.wait(rest, timeout=_GRACE_S)
            done |= more
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _check_alike(clients: Sequence[EngineClient]) -> None:
    up = [client for client in clients if client.alive]
    for other in up[1:]:
        for what in _differences(up[0], other):
            raise ConfigError(
                f"--engine: {up[0].endpoint} and {other.endpoint} serve different models as {what}",
                field="engine",
            )


def _differences(one: EngineClient, other: EngineClient) -> Iterator[str]:
    for model in one.models:
        for theirs in other.models:
            what = difference(model, theirs) if model.name == theirs.name else None
            if what is not None:
                yield f"{model.name}: {what}"
