"""What KV blocks an engine has, told to clients that ask: all of them once, then what changes."""

from __future__ import annotations

from airi.engine.engine import Engine
from airi.engine.loading import HostedModel, hash_seed
from airi.transport.messages import KvChanged, KvHeld
from airi.transport.server import EngineServer

__all__ = ["KvWatch"]

_AT_ONCE = 4096
"""Events of one message: 192 KiB."""


class KvWatch:
    """Reads the core's KV events after each step where anybody watches, and sends them.

    Who watches knows at every moment what some step has left, or is told all anew: messages hold every event in order,
    and where the ring has lost some a snapshot takes their place.
    *Thread safety*: none; the engine's thread owns it.
    """

    def __init__(self, engine: Engine, server: EngineServer) -> None:
        self._engine = engine
        self._server = server
        self._watchers: list[int] = []
        self._coming: list[int] = []
        self._known: set[int] = set()
        self._cursor = 0

    def watch(self, client: int) -> None:
        """The client of this number is told from the next `tell` on; nothing where the engine keeps no events."""
        if self._engine.options.kv_event_records and client not in self._coming:
            self._coming.append(client)

    def forget_client(self, client: int) -> None:
        """It has gone."""
        self._watchers = [each for each in self._watchers if each != client]
        self._coming = [each for each in self._coming if each != client]

    def tell(self) -> None:
        """Sends what has changed. To be called after every step."""
        if not self._watchers and not self._coming:
            return
        if self._watchers:
            self._tell_changes()
        if self._coming:
            # A ring that nobody has read is read from here on; what was before is in the snapshot.
            self._watchers = [each for each in self._watchers if each not in self._coming]
            if not self._watchers:
                self._known = {model.index for model in self._engine.served}
            self._tell_all(
                [model for model in self._engine.served if model.index in self._known], self._coming
            )
            self._watchers += self._coming
            self._coming = []
        new = [model for model in self._engine.served if model.index not in self._known]
        if new:
            self._known |= {model.index for model in new}
            self._tell_all(new, self._watchers)

    def _tell_changes(self) -> None:
        while True:
            events, self._cursor, missed = self._engine.read_kv_events(self._cursor, _AT_ONCE)
            if missed:
                known = [model for model in self._engine.served if model.index in self._known]
                self._tell_all(known, self._watchers)
                return
            if len(events):
                message = KvChanged(events.tobytes())
                for client in self._watchers:
                    self._server.send_to(client, message)
            if len(events) < _AT_ONCE:
                return

    def _tell_all(self, models: list[HostedModel], clients: list[int]) -> None:
        """All of some models, and reading goes on behind it; no step comes between."""
        options = self._engine.options
        for model in models:
            stored, self._cursor = self._engine.kv_snapshot(model.index)
            message = KvHeld(
                model=model.name,
                hash_key=bytes.fromhex(options.hash_key),
                hash_seed=hash_seed(model),
                block_size=model.block_size,
                is_isolated=options.isolate_tenants,
                public_prefixes=model.options.public_prefixes,
                stored=stored.tobytes(),
            )
            for client in clients:
                self._server.send_to(client, message)
