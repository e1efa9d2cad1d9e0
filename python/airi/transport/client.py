"""The gateway's end of the transport: asyncio, one socket, one decoded message per engine step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from airi.errors import EngineDeadError, EngineStartError
from airi.outputs import ErrorInfo, Output
from airi.transport.calls import Calls
from airi.transport.handle import EngineHandle
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
    KvChanged,
    KvHeld,
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
    WatchKv,
    Welcome,
    decode_engine_message,
    error_info,
    error_of,
)
from airi.transport.stream import OpenRequest, Sink

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["EngineClient", "ProgressSink", "fitting"]

logger = logging.getLogger(__name__)

ProgressSink = Callable[[Progress], None]

_MOST_DEATHS = 2
"""Engines that may die of a request before it is not sent again: it may be what kills them."""


class EngineClient(EngineHandle):
    """Sends requests to one engine and hands each stream what every step gave it.

    When the engine dies, streams that had started end with EngineDeadError; the others are sent
    again, once, when an engine answers at the same endpoint within `retry_window_s`.
    *Thread safety*: none; everything runs on the event loop that called `connect`.
    *Invariant*: every request ends with exactly one output that has a finish reason.
    """

    stats: EngineStats | None = None
    """The latest counters the engine pushed; None until one has, also after a restart."""

    def __init__(
        self, endpoint: str, *, retry_window_s: float = 120.0, on_progress: ProgressSink | None = None
    ) -> None:
        """`retry_window_s` 0: without an engine requests end at once, for whoever knows another one."""
        self.endpoint = endpoint
        self.models: list[ModelInfo] = []
        """What the engine serves; kept while it restarts."""
        self.alive = False
        """Whether an engine is there and serves."""
        self.draining = False
        """Whether the engine has said that it accepts nothing new."""
        self.dead: EngineDeadError | None = None
        """Why no engine will come back, once that is known."""
        self.on_progress = on_progress
        self.on_change: Callable[[], None] | None = None
        """Called when anything of the above is another than before."""
        self._on_kv: Callable[[KvHeld | KvChanged], None] | None = None
        self._retry_window_s = retry_window_s
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, OpenRequest] = {}
        self._tenants: dict[int, SetTenant] = {}
        self.changed: dict[str, ModelOptions | None] = {}
        """Models that were loaded by this client, and as None those that it let go."""
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

    @property
    def num_running(self) -> int:
        return len(self._requests)

    # -- requests ------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest, sink: Sink) -> None:
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
        if self._requests.pop(request_id, None) is not None and self.alive:
            self._link.send(Cancel([request_id]))

    # -- calls ---------------------------------------------------------------------------------

    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        known = self._tenants.get(tenant)
        if kv_quota is None and known is not None:
            kv_quota = known.kv_quota
        message = SetTenant(NOBODY, tenant, weight, kv_quota)
        if self.alive:
            await self._call(SetTenant(self._calls.next_number(), tenant, weight, kv_quota))
        self._tenants[tenant] = message

    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        if self.alive:
            await self._call(Forbid(self._calls.next_number(), tuple(sets)))
        self._forbidden = Forbid(NOBODY, tuple(sets))

    async def sleep(self, model: str) -> None:
        """As `EngineHandle.sleep`; an engine that is started again has all its models awake."""
        await self._call(Sleep(self._calls.next_number(), model))

    async def wake(self, model: str) -> None:
        await self._call(Wake(self._calls.next_number(), model))

    async def load(self, model: ModelOptions) -> ModelInfo:
        """As `EngineHandle.load`; an engine that its supervisor starts again has it, too."""
        await self._call(Load(self._calls.next_number(), msgspec.json.encode(model)))
        self.changed[model.name] = model
        return self.find_model(model.name)

    async def unload(self, model: str, *, drains: bool = True) -> None:
        await self._call(Unload(self._calls.next_number(), model, drains))
        self.changed[model] = None

    def watch_kv(self, on_kv: Callable[[KvHeld | KvChanged], None]) -> None:
        """From now on `on_kv` is told what KV blocks the engine has: all of each model, then each change.

        Again from nothing when the engine has started again, after `on_change`.
        """
        self._on_kv = on_kv
        if self.alive:
            self._link.send(WatchKv(NOBODY))

    async def explain(self, request_id: int) -> list[str]:
        return (await self._call(Explain(self._calls.next_number(), request_id))).lines

    async def _call(self, message: ControlMessage) -> Reply:
        if not self.alive:
            raise self.dead or EngineDeadError(f"no engine serves at {self.endpoint}")
        return await self._calls.ask(message, self._link.send)

    def give_up(self, error: EngineDeadError) -> None:
        if self.alive and self._requests:
            self._link.send(Cancel(list(self._requests)))
        self.dead = error
        self.alive = False
        self._calls.fail(error)
        self._end_all(error_info(error), only_started=False)
        if not self._ready.done():
            self._ready.set_exception(EngineStartError(str(error)))
            self._ready.exception()  # may have no waiter
        self._note_change()

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
        self._note_change()

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
        elif isinstance(message, KvChanged | KvHeld):
            if self._on_kv is not None:
                self._on_kv(message)
        elif isinstance(message, EngineStats):
            self.stats = message
            self._note_change()
        elif isinstance(message, Progress):
            if self.on_progress is not None:
                self.on_progress(message)
        elif isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Models):
            self.models = message.models
            self._note_change()
        elif isinstance(message, Goodbye):
            self.draining = True
            self._note_change()
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
            # It has the models that it was started with, and takes no set for others.
            self._link.send(Forbid(NOBODY, fitting(self._forbidden.sets, self.models)))
        if self._on_kv is not None:
            self._link.send(WatchKv(NOBODY))
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
        self._note_change()

    def _note_change(self) -> None:
        if self.on_change is not None:
            self.on_change()

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


def fitting(sets: Sequence[ForbidFor], models: Sequence[ModelInfo]) -> tuple[ForbidFor, ...]:
    """The same for those of their models that are served."""
    names = {name for model in models for name in (model.name, *model.aliases)}
    fitted = (ForbidFor(each.forbidden, tuple(m for m in each.models if m in names)) for each in sets)
    return tuple(each for each in fitted if each.models)
