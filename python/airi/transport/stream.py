"""One request as its client sees it: what it is owed, and its outputs as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from airi.outputs import ErrorInfo, Output
from airi.transport.messages import GenerateRequest, error_of

if TYPE_CHECKING:
    from airi.transport.handle import EngineHandle

__all__ = ["OpenRequest", "OutputStream", "Sink"]

Sink = Callable[[Output], None]


class OpenRequest:
    """One request that the engine owes an end. `started` once anything of it has come back.

    *Thread safety*: none; event loop only.
    """

    __slots__ = ("cancelled", "deadline", "deaths", "message", "sink", "started")

    def __init__(self, message: GenerateRequest, sink: Sink) -> None:
        self.message = message
        self.sink = sink
        self.started = False
        self.cancelled = False
        self.deaths = 0
        timeout = message.timeout_us
        self.deadline = None if timeout is None else time.monotonic_ns() // 1000 + timeout


class OutputStream:
    """Yields a request's outputs; steps that came while the reader was busy arrive as one output.

    *Thread safety*: none; event loop only.
    *Invariant*: at most one output is held, whatever the reader's speed.
    """

    __slots__ = ("_client", "_done", "_error", "_pending", "_request_id", "_waiter")

    def __init__(self, client: EngineHandle, request_id: int) -> None:
        self._client = client
        self._request_id = request_id
        self._pending: Output | None = None
        self._error: ErrorInfo | None = None
        self._done = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> int:
        """The request's id."""
        return self._request_id

    def push(self, output: Output) -> None:
        """Adds what a step gave; called by the client."""
        if output.finish_reason is not None:
            self._done = True
        if output.error is not None:
            self._error = output.error
        elif self._pending is None:
            self._pending = output
        else:
            self._pending.merge(output)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        while True:
            if self._pending is not None:
                output, self._pending = self._pending, None
                return output
            if self._error is not None:
                error, self._error = self._error, None
                raise error_of(error)
            if self._done:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Cancels the request if it still runs; nothing more is delivered."""
        if not self._done:
            self._done = True
            self._client.abandon(self._request_id)
