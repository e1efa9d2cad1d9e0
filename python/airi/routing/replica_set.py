"""Several engines with the same models, as one: each request goes to the replica that answers it first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from airi._core.route import MAX_REPLICAS
from airi.errors import AiriError, ConfigError, EngineDeadError
from airi.outputs import Output, error_info
from airi.routing.agreement import agree, tell
from airi.routing.choosing import KV_EVENT, Decision, ModelRouter
from airi.routing.merging import difference, merge_models, merge_stats
from airi.routing.replica import Replica, Request
from airi.routing.wanted import Wanted
from airi.transport.client import EngineClient, fitting
from airi.transport.handle import EngineHandle
from airi.transport.messages import (
    EngineStats,
    ForbidFor,
    GenerateRequest,
    KvChanged,
    KvHeld,
    ModelInfo,
)
from airi.transport.stream import Sink

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["ReplicaSet"]

logger = logging.getLogger(__name__)

_MOST_DEATHS = 2
"""Replicas that may die of a request before it is not sent again: it may be what kills them."""
_DECISIONS = 1024
"""How many of the latest are kept."""


class ReplicaSet(EngineHandle):
    """Sends each request to one of several engines, and to another one where that goes before it has answered.

    When a replica dies, streams that had started end with EngineDeadError; its other requests go to the others, or
    wait up to `retry_window_s` for the first that comes back. A replica that drains gets nothing new. What is told to
    one is told to all, or taken back; one that comes back is brought to where the others are.
    *Thread safety*: none; everything runs on one event loop.
    *Invariant*: every request ends with exactly one output that has a finish reason.
    """

    def __init__(self, clients: Sequence[EngineClient], *, retry_window_s: float = 120.0) -> None:
        """Of these clients, whose own `retry_window_s` is 0; `close` closes them."""
        if not 1 <= len(clients) <= MAX_REPLICAS:
            raise ConfigError(
                f"replicas is {len(clients)}; accepted: from 1 to {MAX_REPLICAS}", field="replicas"
            )
        self.replicas = [Replica(str(i), client) for i, client in enumerate(clients)]
        """By name: their number."""
        self.models: list[ModelInfo] = []
        self.alive = False
        self.draining = False
        self.dead: EngineDeadError | None = None
        self.on_decision: Callable[[Decision], None] | None = None
        """Called with each."""
        self._clients = list(clients)
        self._retry_window_s = retry_window_s
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, Request] = {}
        self._held: dict[int, Request] = {}
        self._window: asyncio.TimerHandle | None = None
        self._routers: dict[str, ModelRouter] = {}
        self._names: dict[str, str] = {}
        self._decisions: dict[int, Decision] = {}
        self._tenants: dict[int, tuple[float, float | None]] = {}
        self._forbidden: tuple[ForbidFor, ...] = ()
        self._wanted = Wanted(self._clients)
        self._stats: EngineStats | None = None
        self._stats_are_old = True
        self._restoring: set[asyncio.Task[None]] = set()
        self._closed = False
        for replica in self.replicas:
            replica.client.on_change = partial(self._on_change, replica)
            self._on_change(replica)
            replica.client.watch_kv(partial(self._on_kv, replica))

    @property
    def stats(self) -> EngineStats | None:
        """The sums over replicas."""
        if self._stats_are_old:
            self._stats = merge_stats(client.stats for client in self._clients)
            self._stats_are_old = False
        return self._stats

    @property
    def num_running(self) -> int:
        return len(self._requests)

    # -- requests ------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest, sink: Sink) -> None:
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id} is in use")
        router = self._routers.get(self._names.get(request.model, ""))
        if self.dead is not None or self._closed or router is None:
            output = Output(request.request_id, [], "error", error=error_info(self._refusal(request.model)))
            self._loop.call_soon(sink, output)
            return
        entry = Request(request, sink, router)
        self._requests[request.request_id] = entry
        self._send(entry)

    def _refusal(self, model: str) -> AiriError:
        if self.dead is not None or self._closed:
            return self.dead or EngineDeadError("the engine is shutting down")
        try:
            self.find_model(model)
        except AiriError as error:
            return error
        return EngineDeadError(f"no engine serves {model}")

    def _send_later(self, entry: Request) -> None:
        """Sends a request that has waited, or that a replica was lost with."""
        message = entry.message
        if entry.deadline is not None:
            message.timeout_us = entry.deadline - time.monotonic_ns() // 1000
            if message.timeout_us <= 0:
                self._end(entry, Output(message.request_id, [], "deadline"))
                return
        self._send(entry)

    def _send(self, entry: Request) -> None:
        message = entry.message
        decision = entry.router.send(message)
        if decision is None:
            entry.replica = None
            self._held[message.request_id] = entry
            self._start_window()
            return
        self._keep(message.request_id, decision)
        entry.replica = self.replicas[int(decision.replica)]
        entry.replica.client.submit(message, partial(self._on_output, entry))

    def _keep(self, request_id: int, decision: Decision) -> None:
        before = self._decisions.pop(request_id, None)
        if before is not None:
            decision = replace(decision, lost=(*before.lost, before.replica))
        self._decisions[request_id] = decision
        if len(self._decisions) > _DECISIONS:
            del self._decisions[next(iter(self._decisions))]
        if self.on_decision is not None:
            self.on_decision(decision)

    def _on_output(self, entry: Request, output: Output) -> None:
        if output.tokens:
            entry.num_tokens += len(output.tokens)
            if not entry.started:
                entry.started = True
                entry.router.first_token(output.request_id)
        if output.finish_reason is None:
            entry.sink(output)
            return
        entry.router.ended(output.request_id, entry.num_tokens)
        if not self._is_lost(entry, output):
            self._end(entry, output)
        elif entry.cancelled:
            self._end(entry, Output(output.request_id, [], "cancelled"))
        elif entry.deaths == _MOST_DEATHS:
            error = EngineDeadError(f"{_MOST_DEATHS} engine processes died before this request began")
            self._end(entry, Output(output.request_id, [], "error", error=error_info(error)))
        else:
            self._send_later(entry)

    def _is_lost(self, entry: Request, output: Output) -> bool:
        """Whether a request ends because its replica does, of which its caller has seen nothing yet."""
        error, replica = output.error, entry.replica
        if error is None or error.code != EngineDeadError.code or entry.started or replica is None:
            return False
        if self.dead is not None or self._closed:
            return False
        if replica.client.alive:  # it shuts down, and says so next
            replica.refuses = True
            self._on_change(replica)
        else:
            entry.deaths += 1
        return True

    def _end(self, entry: Request, output: Output) -> None:
        if self._requests.pop(output.request_id, None) is not None:
            entry.sink(output)

    def cancel(self, request_id: int) -> None:
        entry = self._requests.get(request_id)
        if entry is None:
            return
        if entry.replica is None:
            del self._requests[request_id], self._held[request_id]
            self._loop.call_soon(entry.sink, Output(request_id, [], "cancelled"))
        else:
            entry.cancelled = True
            entry.replica.client.cancel(request_id)

    def abandon(self, request_id: int) -> None:
        entry = self._requests.pop(request_id, None)
        if entry is None:
            return
        self._held.pop(request_id, None)
        entry.router.ended(request_id, entry.num_tokens)
        if entry.replica is not None:
            entry.replica.client.abandon(request_id)

    def replica_of(self, request_id: int) -> str | None:
        decision = self._decisions.get(request_id)
        return None if decision is None else decision.replica

    def decision(self, request_id: int) -> Decision | None:
        """Where a request was last sent, and why; of the latest ones."""
        return self._decisions.get(request_id)

    # -- calls ---------------------------------------------------------------------------------

    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        """As `EngineHandle.set_tenant`, of all replicas; where one refuses, the others have what they had before."""
        before = self._tenants.get(tenant, (1.0, None if kv_quota is None else 0.0))
        await agree(
            self._clients,
            tell(lambda c: c.set_tenant(tenant, weight, kv_quota=kv_quota)),
            tell(lambda c: c.set_tenant(tenant, before[0], kv_quota=before[1])),
        )
        self._tenants[tenant] = weight, before[1] if kv_quota is None else kv_quota

    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        """As `EngineHandle.forbid`, of all replicas; where one refuses, the others have what they had before."""
        before, given = self._forbidden, tuple(sets)
        await agree(
            self._clients,
            tell(lambda c: c.forbid(fitting(given, c.models))),
            tell(lambda c: c.forbid(fitting(before, c.models))),
        )
        self._forbidden = given

    async def sleep(self, model: str) -> None:
        await self._wanted.sleep(model)

    async def wake(self, model: str) -> None:
        await self._wanted.wake(model)

    async def load(self, model: ModelOptions) -> ModelInfo:
        await self._wanted.load(model)
        self._see_models()
        return self.find_model(model.name)

    async def unload(self, model: str, *, drains: bool = True) -> None:
        await self._wanted.unload(model, drains=drains)
        self._see_models()
        for replica in self.replicas:
            self._on_change(replica)

    async def explain(self, request_id: int) -> list[str]:
        decision = self._decisions.get(request_id)
        if decision is None:
            return []
        return await self.replicas[int(decision.replica)].client.explain(request_id)

    def give_up(self, error: EngineDeadError) -> None:
        self.dead = error
        for client in self._clients:
            client.give_up(error)
        self._end_held(error)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.alive = False
        for task in self._restoring:
            task.cancel()
        for client in self._clients:
            client.on_change = None
            client.close()
        self._end_held(EngineDeadError("the engine client was closed"))

    # -- replicas ------------------------------------------------------------------------------

    def _on_change(self, replica: Replica) -> None:
        self._stats_are_old = True
        client = replica.client
        if client.alive != replica.is_up:
            self._note_life(replica)
        if client.models is not replica.models:
            replica.models = client.models
            self._see_models()
        for name, router in self._routers.items():
            self._place(replica, name, router)
        self.alive = any(each.alive for each in self._clients)
        self.draining = self.alive and not any(each.is_open for each in self.replicas)
        if self.dead is None and all(each.dead is not None for each in self._clients):
            self.dead = client.dead
            self._end_held(self.dead or EngineDeadError("no engine will come back"))
        if replica.is_open and self._held:
            held, self._held = self._held, {}
            self._cancel_window()
            for entry in held.values():
                self._send_later(entry)

    def _on_kv(self, replica: Replica, message: KvHeld | KvChanged) -> None:
        """What a replica has cached."""
        if isinstance(message, KvHeld):
            router = self._routers.get(message.model)
            if router is not None and replica.name in router.replicas:
                router.hold(replica.name, message)
            return
        events = np.frombuffer(message.events, KV_EVENT)
        for router in self._routers.values():
            router.apply(replica.name, events)

    def _note_life(self, replica: Replica) -> None:
        """It has come, or gone."""
        replica.is_up = replica.client.alive
        if not replica.is_up:
            others = sum(each.is_open for each in self.replicas)
            logger.warning("replica %s is gone; %d of %d serve", replica.name, others, len(self.replicas))
            return
        replica.refuses = False
        replica.lives += 1
        if replica.lives > 1:
            logger.warning("replica %s serves again", replica.name)
            task = asyncio.ensure_future(self._restore(replica))
            self._restoring.add(task)
            task.add_done_callback(self._restoring.discard)

    async def _restore(self, replica: Replica) -> None:
        """Brings one that has started again to where the others are."""
        await self._wanted.restore(replica.client)
        await replica.client.forbid(fitting(self._forbidden, replica.client.models))

    def _see_models(self) -> None:
        unloaded = self._wanted.unloaded
        self.models = [
            model for model in merge_models(r.models for r in self.replicas) if model.name not in unloaded
        ]
        self._names = {name: m.name for m in self.models for name in (*m.aliases, m.name)}
        for model in self.models:
            if model.name not in self._routers:
                self._routers[model.name] = ModelRouter(model)
        for name in self._routers.keys() - set(self._names.values()):
            del self._routers[name]

    def _place(self, replica: Replica, name: str, router: ModelRouter) -> None:
        """Has a model's router know of a replica what there is to know."""
        info = next((model for model in replica.models if model.name == name), None)
        serves = replica.is_up and info is not None and difference(self.find_model(name), info) is None
        if info is None or not serves:
            if replica.name in router.replicas:
                router.remove(replica.name)
            return
        if replica.name not in router.replicas:
            router.add(replica.name, info)
        if not replica.is_open:
            router.drain(replica.name)
        for stats in () if replica.client.stats is None else replica.client.stats.models:
            if stats.name == name:
                router.count(replica.name, stats)

    # -- requests that wait for a replica ------------------------------------------------------

    def _start_window(self) -> None:
        if self._window is None:
            self._window = self._loop.call_later(self._retry_window_s, self._on_window_closed)

    def _cancel_window(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None

    def _on_window_closed(self) -> None:
        self._window = None
        self._end_held(EngineDeadError(f"no replica has taken requests for {self._retry_window_s:g} s"))

    def _end_held(self, error: EngineDeadError) -> None:
        self._cancel_window()
        held, self._held = self._held, {}
        for request_id, entry in held.items():
            self._end(entry, Output(request_id, [], "error", error=error_info(error)))
