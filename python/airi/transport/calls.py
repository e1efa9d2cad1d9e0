"""Calls to the engine that get one answer: who waits for which."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from airi.errors import AiriError
from airi.transport.messages import NOBODY, ControlMessage, Reply, error_of

__all__ = ["Calls"]

logger = logging.getLogger(__name__)


class Calls:
    """Numbers calls and gives each its reply; never sends.

    *Thread safety*: none; event loop only. *Invariant*: every call that was begun ends with a reply or an error.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._numbers = itertools.count(NOBODY + 1)

    def next_number(self) -> int:
        """A number for a message."""
        return next(self._numbers)

    async def ask(self, message: ControlMessage, send: Callable[[ControlMessage], None]) -> Reply:
        """Sends a message that has a number of its own; raises the error that comes back."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[message.call] = future
        try:
            send(message)
            return await future
        finally:
            self._waiting.pop(message.call, None)

    def answer(self, reply: Reply) -> None:
        """Hands a reply to who waits for it. An error that nobody waits for is logged."""
        future = self._waiting.get(reply.call)
        if future is None or future.done():
            if reply.error is not None:
                logger.error("%s", reply.error.message)
        elif reply.error is None:
            future.set_result(reply)
        else:
            future.set_exception(error_of(reply.error))

    def fail(self, error: AiriError) -> None:
        """Ends every call with an error: no reply will come."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
