"""Calls that all replicas must have heard, or none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from airi.errors import EngineDeadError
from airi.transport.client import EngineClient

__all__ = ["agree", "on_all", "tell"]

logger = logging.getLogger(__name__)

_TRIES = 3

Call = Callable[[EngineClient], Awaitable[object]]


def tell(call: Call) -> Call:
    """The same of what a client keeps for its next engine: one that dies of it, or meanwhile, is told again."""

    async def told(client: EngineClient) -> None:
        for left in reversed(range(_TRIES)):
            try:
                await call(client)
            except EngineDeadError:
                if not left:
                    raise
            else:
                return

    return told


async def on_all(clients: Sequence[EngineClient], call: Call) -> list[BaseException | None]:
    """How each ended, None for well; an engine that is not there, or dies, ends with EngineDeadError."""
    ended = await asyncio.gather(*(call(client) for client in clients), return_exceptions=True)
    return [each if isinstance(each, BaseException) else None for each in ended]


async def agree(clients: Sequence[EngineClient], call: Call, undo: Call) -> None:
    """Has all of them do something. Where one refuses it is undone in the others, and that one's error is raised.

    An engine that dies meanwhile does not count, unless all do: EngineDeadError.
    """
    ended = await on_all(clients, call)
    refused = [each for each in ended if each is not None and not isinstance(each, EngineDeadError)]
    if refused:
        done = [client for client, error in zip(clients, ended, strict=True) if error is None]
        for client, error in zip(done, await on_all(done, undo), strict=True):
            if error is not None and not isinstance(error, EngineDeadError):
                logger.error(
                    "the engine at %s could not undo what another refused: %s", client.endpoint, error
                )
        raise refused[0]
    dead = [each for each in ended if each is not None]
    if dead and len(dead) == len(ended):
        raise dead[0]
