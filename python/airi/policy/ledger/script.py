"""Running the ledger's script on a Redis server: what is asked for at the same time goes as one write."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from airi.errors import LedgerUnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Redis

Argument = bytes | str | int
Reply = list[Any]

_AT_ONCE = 128
"""Runs in one write: bounds what is lost, and must be answered by an error, when a connection breaks."""

_LOG = logging.getLogger(__name__)


class _Call(NamedTuple):
    keys: Sequence[bytes]
    arguments: Sequence[Argument]
    future: asyncio.Future[Reply]
    abandoned: Callable[[Reply], None] | None


def connect(url: str, *, timeout_s: float = 2.0) -> Redis:
    """A client for a ledger: it never repeats a command by itself. Raises ValueError for a URL of another kind."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


def script_text() -> str:
    """The source of the script."""
    return resources.files(__package__).joinpath("ledger.lua").read_text()


class Script:
    """Runs the script by its hash, and loads it where the server does not know it (yet, or after a restart).

    While one write is under way, further runs gather for the next: one connection serves all, and its cost is
    shared. A run is never repeated unless the server has said that it did not happen.

    Thread safety: none; one event loop.
    """

    def __init__(self, redis: Redis, text: str | None = None) -> None:
        self._redis = redis
        self._text = script_text() if text is None else text
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self._waiting: list[_Call] = []
        self._flusher: asyncio.Task[None] | None = None

    async def run(
        self,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        *,
        abandoned: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """The script's reply. Raises LedgerUnavailableError where there is none.

        `abandoned` is given the reply where the caller was cancelled before it could take it.
        """
        future = self.send(keys, arguments, abandoned=abandoned)
        try:
            return await future
        except asyncio.CancelledError:
            if abandoned is not None and future.done() and not future.cancelled() and not future.exception():
                abandoned(future.result())
            raise

    def send(
        self,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        *,
        abandoned: Callable[[Reply], None] | None = None,
    ) -> asyncio.Future[Reply]:
        """Like `run`, without waiting."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        # Nobody may look at it: an error there is no reason to complain at its collection.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(_Call(keys, arguments, future, abandoned))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush(), name="ledger-script")
        return future

    async def server_info(self, section: str) -> dict[str, Any]:
        """A section of INFO. Raises LedgerUnavailableError where the server does not answer."""
        from redis.exceptions import RedisError

        try:
            info: dict[str, Any] = await self._redis.info(section)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return info

    async def close(self) -> None:
        """Waits for what was asked for."""
        while self._flusher is not None:
            await self._flusher

    async def _flush(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
                await self._execute(calls)
        finally:
            self._flusher = None

    async def _execute(self, calls: list[_Call]) -> None:
        from redis.exceptions import NoScriptError

        try:
            replies = await self._pipeline(calls)
            unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                await self._redis.script_load(self._text)
                again = await self._pipeline([calls[n] for n in unknown])
                for n, reply in zip(unknown, again, strict=True):
                    replies[n] = reply
        except Exception as error:  # whatever it is, nobody may wait for ever
            replies = [error] * len(calls)
        for call, reply in zip(calls, replies, strict=True):
            self._answer(call, reply)

    async def _pipeline(self, calls: list[_Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(self._sha, len(call.keys), *call.keys, *call.arguments)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    def _answer(self, call: _Call, reply: Reply | BaseException) -> None:
        if isinstance(reply, BaseException):
            if not call.future.done():
                error = _unavailable(reply)
                error.__cause__ = reply
                call.future.set_exception(error)
        elif not call.future.done():
            call.future.set_result(reply)
        elif call.abandoned is not None:
            call.abandoned(reply)


def _unavailable(error: BaseException) -> LedgerUnavailableError:
    return LedgerUnavailableError(
        f"limits cannot be counted: the Redis for shared_counters fails with {type(error).__name__}"
    )
