"""The gateway's end of the transport: asyncio, one socket, one decoded message per engine step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from airi.errors import EngineDeadError, EngineStartError, ModelNotFoundError
from airi.outputs import ErrorInfo, Output
from airi.transport.calls import Calls
from airi.transport.link import EngineLink
from airi.transport.messages import (
    NOBODY,
    Cancel,
    ControlMessage,
    EngineStats,
    Explain,
    Failed,
    Forbid,
    ForbidFor,
    GenerateRequest,
    Goodbye,
    Hello,
    Load,
    ModelInfo,
    Models,
    Outputs,
    Progress,
    Reply,
    SetTenant,
    Sleep,
    Unload,
    Wake,
    Welcome,
    decode_engine_message,
    error_info,
    error_of,
)
from airi.transport.stream import OpenRequest, OutputStream, Sink

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["EngineClient", "ProgressSink"]

logger = logging.getLogger(__name__)

ProgressSink = Callable[[Progress], None]

_MOST_DEATHS = 2
"""Engines that may die of a request before it is not sent again: it may be what kills them."""


class EngineClient:
    """Sends requests to one engine and hands each stream what every step gave it.

    When the engine dies, streams that had started end with EngineDeadError; the others are sent
    again, once, when an engine answers at the same endpoint within `retry_window_s`.
    *Thread safety*: none; everything runs on the event loop that called `connect`.
    *Invariant*: every request ends with exactly one output that has a finish reason.
    """

    def __init__(
        self, endpoint: str, *, retry_window_s: float = 120.0, on_progress: ProgressSink | None = None
    ) -> None:
        self.endpoint = endpoint
        self.models: list[ModelInfo] = []
        """What the engine serves; kept while it restarts."""
        self.stats: EngineStats | None = None
        """The latest counters the engine pushed; None until one has, also after a restart."""
        self.alive = False
        """Whether an engine is there and serves."""
        self.draining = False
        """Whether the engine has said that it accepts nothing new."""
        self.dead: EngineDeadError | None = None
        """Why no engine will come back, once that is known."""
        self.on_progress = on_progress
        self._retry_window_s = retry_window_s
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, OpenRequest] = {}
        self._tenants: dict[int, SetTenant] = {}
        self._forbidden: Forbid | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._window: asyncio.TimerHandle | None = None
        self._closed = False
        self._calls = Calls()
        self._link = self._open_link()

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        timeout_s: float | None = None,
        retry_window_s: float = 120.0,
        on_progress: ProgressSink | None = None,
    ) -> EngineClient:
        """Connects and waits until the engine serves.

        Raises EngineStartError when it reports that it cannot, or has not answered in `timeout_s`; ConfigError for
        what is no endpoint.
        """
        client = cls(endpoint, retry_window_s=retry_window_s, on_progress=on_progress)
        try:
            await client.wait_ready(timeout_s)
        except BaseException:
            client.close()
            raise
        return client

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Returns once an engine serves; raises as `connect` does."""
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)
        except TimeoutError:
            raise EngineStartError(f"no engine answered at {self.endpoint} in {timeout_s:g} s") from None

    def find_model(self, name: str) -> ModelInfo:
        """The model that serves under `name` or an alias; raises ModelNotFoundError."""
        for model in self.models:
            if model.name == name or name in model.aliases:
                return model
        known = ", ".join(model.name for model in self.models)
        raise ModelNotFoundError(f"model {name!r} is not loaded; loaded: {known}", field="model")

    @property
    def num_running(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    # -- requests ------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Output]:
        """Yields what each step adds to `request`; the last output has a finish reason.

        Leaving the iteration early cancels the request. Raises RequestError when the engine refuses it
        and EngineDeadError when the engine dies under it.
        """
        stream = self.open(request)
        try:
            async for output in stream:
                yield output
        finally:
            stream.close()

    def open(self, request: GenerateRequest) -> OutputStream:
        """Sends `request` and returns its stream: what `generate` iterates, without the generator."""
        stream = OutputStream(self, request.request_id)
        self.submit(request, stream.push)
        return stream

    def submit(self, request: GenerateRequest, sink: Sink) -> None:
        """Sends `request`; `sink` is called with each of its outputs, inside the event loop.

        The cheapest form: no task switch per output. A sink must not raise. Errors, too, come as an
        output: reason "error", with `error` set (`airi.transport.error_of` gives the exception).
        """
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id} is in use")
        entry = OpenRequest(request, sink)
        self._requests[request.request_id] = entry
        if self.dead is not None or self.draining or self._closed:
            error = self.dead or EngineDeadError("the engine is shutting down")
            self._loop.call_soon(self._end_with_error, request.request_id, error_info(error))
        elif self.alive:
            self._link.send(request)
        else:
            self._start_window()

    def cancel(self, request_id: int) -> None:
        """Asks the engine to stop a request; its stream ends with reason "cancelled".

        Ids that are unknown, or have ended, do nothing.
        """
        entry = self._requests.get(request_id)
        if entry is None:
            return
        if self.alive:
            if not entry.cancelled:
                entry.cancelled = True
                self._link.send(Cancel([request_id]))
        else:
            del self._requests[request_id]
            self._loop.call_soon(entry.sink, Output(request_id, [], "cancelled"))

    def abandon(self, request_id: int) -> None:
        """As `cancel`, for a reader that has gone: nothing of the request is delivered any more."""
        if self._requests.pop(request_id, None) is not None and self.alive:
            self._link.send(Cancel([request_id]))

    # -- calls ---------------------------------------------------------------------------------

    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        """Gives a tenant its share against the others that have requests waiting; kept across restarts.

        `kv_quota`: the share, in [0, 1], of each model's KV memory that it keeps; None leaves that as it is. Raises
        ConfigError, and keeps nothing, where the engine refuses it. Without an engine the next one is told.
        """
        known = self._tenants.get(tenant)
        if kv_quota is None and known is not None:
            kv_quota = known.kv_quota
        message = SetTenant(NOBODY, tenant, weight, kv_quota)
        if self.alive:
            await self._call(SetTenant(self._calls.next_number(), tenant, weight, kv_quota))
        self._tenants[tenant] = message

    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        """Tells which sets of forbidden texts requests may name from now on; kept across restarts.

        Raises ConfigError, and keeps nothing, where there can be no masks of one. Without an engine the next one is
        told.
        """
        if self.alive:
            await self._call(Forbid(self._calls.next_number(), tuple(sets)))
        self._forbidden = Forbid(NOBODY, tuple(sets))

    async def sleep(self, model: str) -> None:
        """Lends the memory of a model that is `sleepable` to the others; returns when it sleeps.

        Its requests wait until `wake`. Raises ModelNotFoundError, ConfigError or EngineDeadError; an engine that is
        started again has all its models awake.
        """
        await self._call(Sleep(self._calls.next_number(), model))

    async def wake(self, model: str) -> None:
        """Brings a sleeping model back; returns when its requests may run. Raises as `sleep`."""
        await self._call(Wake(self._calls.next_number(), model))

    async def load(self, model: ModelOptions) -> ModelInfo:
        """Serves one more model, beside the steps of the others; returns when its requests may run.

        Raises CheckpointError, ConfigError (MemoryBudgetError for too little memory), then nothing has changed, or
        EngineDeadError; an engine that is started again has the models that it was started with.
        """
        await self._call(Load(self._calls.next_number(), msgspec.json.encode(model)))
        return self.find_model(model.name)

    async def unload(self, model: str, *, drains: bool = True) -> None:
        """Takes no more requests of a model and returns when it has gone: when those it has have ended, or at once.

        Raises ModelNotFoundError, ConfigError or EngineDeadError.
        """
        await self._call(Unload(self._calls.next_number(), model, drains))

    async def explain(self, request_id: int) -> list[str]:
        """What the engine decided about a request of this client and why, one line each, oldest first.

        Also of one that has ended; empty where its last decisions do not name it. Raises EngineDeadError.
        """
        return (await self._call(Explain(self._calls.next_number(), request_id))).lines

    async def _call(self, message: ControlMessage) -> Reply:
        if not self.alive:
            raise self.dead or EngineDeadError(f"no engine serves at {self.endpoint}")
        return await self._calls.ask(message, self._link.send)

    def give_up(self, error: EngineDeadError) -> None:
        """No engine will come back: ends every request, and later ones at once, with `error`.

        An engine that lives all the same is told to stop them.
        """
        if self.alive and self._requests:
            self._link.send(Cancel(list(self._requests)))
        self.dead = error
        self.alive = False
        self._calls.fail(error)
        self._end_all(error_info(error), only_started=False)
        if not self._ready.done():
            self._ready.set_exception(EngineStartError(str(error)))
            self._ready.exception()  # may have no waiter

    def close(self) -> None:
        """Ends every request with EngineDeadError and closes the socket."""
        if self._closed:
            return
        self._closed = True
        self.alive = False
        self._cancel_window()
        self._link.close()
        closed = EngineDeadError("the engine client was closed")
        self._calls.fail(closed)
        self._end_all(error_info(closed), only_started=False)
        if not self._ready.done():
            self._ready.cancel()

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- the engine process --------------------------------------------------------------------

    def _open_link(self) -> EngineLink:
        link = EngineLink(self.endpoint, on_frame=self._receive, on_lost=self._on_lost)
        link.send(Hello())
        return link

    def _on_lost(self) -> None:
        """The connection broke: the engine process is gone, or about to be."""
        self._link.close()
        had_requests, self.alive = self.alive, False
        self.draining, self.stats = False, None
        error = EngineDeadError("the engine process died while this request was running")
        self._end_all(error_info(error), only_started=True)
        self._calls.fail(EngineDeadError("the engine process died before it answered"))
        for request_id in [i for i, entry in self._requests.items() if entry.cancelled]:
            self.cancel(request_id)  # what nobody wants any more is not sent again
        if had_requests:
            self._count_death()
        self._start_window()
        self._link = self._open_link()

    def _count_death(self) -> None:
        """Another engine died with these requests; ends those that have had their second chance."""
        error = EngineDeadError(f"the engine process died {_MOST_DEATHS} times before this request began")
        for request_id, entry in list(self._requests.items()):
            entry.deaths += 1
            if entry.deaths == _MOST_DEATHS:
                self._end_with_error(request_id, error_info(error))

    def _on_window_closed(self) -> None:
        self._window = None
        message = f"no engine has answered at {self.endpoint} for {self._retry_window_s:g} s"
        self._end_all(error_info(EngineDeadError(message)), only_started=False)

    # -- messages ------------------------------------------------------------------------------

    def _receive(self, frame: bytes) -> None:
        message = decode_engine_message(frame)
        if isinstance(message, Outputs):
            self._dispatch(message)
        elif isinstance(message, EngineStats):
            self.stats = message
        elif isinstance(message, Progress):
            if self.on_progress is not None:
                self.on_progress(message)
        elif isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Models):
            self.models = message.models
        elif isinstance(message, Goodbye):
            self.draining = True
        elif isinstance(message, Reply):
            self._calls.answer(message)
        else:
            self._on_failed(message)

    def _dispatch(self, message: Outputs) -> None:
        requests = self._requests
        ids = memoryview(message.request_ids).cast("q")
        tokens = memoryview(message.tokens).cast("i")
        for request_id, token in zip(ids, tokens, strict=True):
            entry = requests.get(request_id)
            if entry is not None:
                entry.sink(Output(request_id, [token]))
        for output in message.others:
            entry = requests.get(output.request_id)
            if entry is None:
                continue
            if output.tokens:
                entry.started = True
            if output.finish_reason is not None:
                del requests[output.request_id]
            entry.sink(output)

    def _on_welcome(self, message: Welcome) -> None:
        self._cancel_window()
        self.models = message.models
        self.draining = False
        self.alive = True
        for tenant in self._tenants.values():
            self._link.send(tenant)
        if self._forbidden is not None:
            self._link.send(self._forbidden)
        now = time.monotonic_ns() // 1000
        for request_id, entry in list(self._requests.items()):
            if entry.deadline is not None:
                if entry.deadline <= now:
                    del self._requests[request_id]
                    entry.sink(Output(request_id, [], "deadline"))
                    continue
                entry.message.timeout_us = entry.deadline - now
            self._link.send(entry.message)
        if not self._ready.done():
            self._ready.set_result(None)

    def _on_failed(self, message: Failed) -> None:
        error = error_of(message.error)
        if not self._ready.done():
            # A load error says more as itself than wrapped.
            itself = error.code in ("invalid_checkpoint", "invalid_config", "memory_budget")
            self._ready.set_exception(error if itself else EngineStartError(str(error)))
            self._ready.exception()  # may have no waiter
        elif self.models:
            logger.error("the engine cannot start again: %s", error)

    # -- ends ----------------------------------------------------------------------------------

    def _start_window(self) -> None:
        """Bounds how long requests wait for an engine to come back."""
        if self._window is None:
            self._window = self._loop.call_later(self._retry_window_s, self._on_window_closed)

    def _cancel_window(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None

    def _end_all(self, info: ErrorInfo, *, only_started: bool) -> None:
        for request_id, entry in list(self._requests.items()):
            if entry.started or not only_started:
                self._end_with_error(request_id, info)

    def _end_with_error(self, request_id: int, info: ErrorInfo) -> None:
        entry = self._requests.pop(request_id, None)
        if entry is not None:
            entry.sink(Output(request_id, [], "error", error=info))
