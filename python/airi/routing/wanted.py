"""What was changed about the models of replicas since they started, for those that start again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from airi.errors import AiriError, EngineDeadError
from airi.routing.agreement import Call, agree, on_all
from airi.transport.client import EngineClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airi.engine.options import ModelOptions

__all__ = ["Wanted"]

logger = logging.getLogger(__name__)


class Wanted:
    """Loads, unloads, sends to sleep and wakes on all replicas, and brings one that comes back to where they are.

    *Thread safety*: none; event loop only. *Invariant*: one change at a time.
    """

    def __init__(self, clients: Sequence[EngineClient]) -> None:
        self._clients = clients
        self._loaded: dict[str, ModelOptions] = {}
        self.unloaded: set[str] = set()
        """Models that replicas may have still, or have when they start, and that nobody is to use."""
        self._asleep: set[str] = set()
        self._changing = asyncio.Lock()

    async def load(self, model: ModelOptions) -> None:
        """On all, or none: where one cannot, it is taken from the others, and what that one said is raised.

        Some that have it already keep it: whoever had it loaded has ended before all had.
        """
        async with self._changing:
            was_unloaded = model.name in self.unloaded
            self.unloaded.discard(model.name)
            try:
                lacking = [client for client in self._clients if not _has(client, model)]
                try:
                    await agree(
                        lacking or self._clients,
                        lambda c: c.load(model),
                        lambda c: c.unload(model.name, drains=False),
                    )
                except EngineDeadError:
                    if len(lacking) in (0, len(self._clients)):
                        raise
            except BaseException:
                if was_unloaded:
                    self.unloaded.add(model.name)
                raise
            self._loaded[model.name] = model

    async def unload(self, model: str, *, drains: bool) -> None:
        """From all. It cannot be taken back, as requests have ended: what one could not is tried when it comes back.

        Raises where none could.
        """
        async with self._changing:
            await self._some(lambda c: c.unload(model, drains=drains), model, "unload")
            self._loaded.pop(model, None)
            self.unloaded.add(model)
            self._asleep.discard(model)

    async def sleep(self, model: str) -> None:
        """On all, or none: where one cannot, the others are woken."""
        async with self._changing:
            await agree(self._clients, lambda c: c.sleep(model), lambda c: c.wake(model))
            self._asleep.add(model)

    async def wake(self, model: str) -> None:
        """On all that can; raises where none could. Requests go where it is awake."""
        async with self._changing:
            await self._some(lambda c: c.wake(model), model, "wake")
            self._asleep.discard(model)

    async def restore(self, client: EngineClient) -> None:
        """An engine has started again with what it was started with: has it change as the others have."""
        async with self._changing:
            try:
                served = {model.name for model in client.models}
                for name, options in self._loaded.items():
                    if name not in served:
                        await client.load(options)
                for name in self.unloaded & served:
                    await client.unload(name, drains=False)
                for name in self._asleep:
                    await client.sleep(name)
            except EngineDeadError:
                pass  # it is tried again when it comes back
            except AiriError as error:
                logger.error("the engine at %s has not the models of the others: %s", client.endpoint, error)

    async def _some(self, call: Call, model: str, what: str) -> None:
        ended = await on_all(self._clients, call)
        failed = [(c, error) for c, error in zip(self._clients, ended, strict=True) if error is not None]
        if len(failed) == len(ended):
            told = next(
                (error for _, error in failed if not isinstance(error, EngineDeadError)), failed[0][1]
            )
            raise told
        for client, error in failed:
            if not isinstance(error, EngineDeadError):
                logger.error("the engine at %s did not %s %s: %s", client.endpoint, what, model, error)


def _has(client: EngineClient, model: ModelOptions) -> bool:
    """Whether a replica has this model, from the same folder or the same commit."""
    _, at, commit = model.path.rpartition("@")
    return any(
        each.name == model.name and (each.path == model.path or (at and Path(each.path).name == commit))
        for each in client.models
    )
