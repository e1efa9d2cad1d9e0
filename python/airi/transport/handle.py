"""What runs models for a gateway: one engine, or several behind the same calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from airi.errors import EngineDeadError, ModelNotFoundError
from airi.outputs import Output
from airi.transport.messages import EngineStats, ForbidFor, GenerateRequest, ModelInfo
from airi.transport.stream import OutputStream, Sink

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["EngineHandle"]


class EngineHandle(ABC):
    """Takes requests and hands each what every step gave it.

    *Thread safety*: none; everything runs on one event loop.
    *Invariant*: every request ends with exactly one output that has a finish reason.
    """

    models: list[ModelInfo]
    """What is served; kept while engines restart."""
    alive: bool
    """Whether an engine is there and serves."""
    draining: bool
    """Whether what serves has said that it accepts nothing new."""
    dead: EngineDeadError | None
    """Why no engine will come back, once that is known."""

    @property
    @abstractmethod
    def stats(self) -> EngineStats | None:
        """The latest counters; None until there are some, also after a restart."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Requests that have not ended."""

    @abstractmethod
    def submit(self, request: GenerateRequest, sink: Sink) -> None:
        """Sends `request`; `sink` is called with each of its outputs, inside the event loop.

        The cheapest form: no task switch per output. A sink must not raise. Errors, too, come as an
        output: reason "error", with `error` set (`airi.transport.error_of` gives the exception).
        """

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Asks the engine to stop a request; its stream ends with reason "cancelled".

        Ids that are unknown, or have ended, do nothing.
        """

    @abstractmethod
    def abandon(self, request_id: int) -> None:
        """As `cancel`, for a reader that has gone: nothing of the request is delivered any more."""

    @abstractmethod
    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        """Gives a tenant its share against the others that have requests waiting; kept across restarts.

        `kv_quota`: the share, in [0, 1], of each model's KV memory that it keeps; None leaves that as it is. Raises
        ConfigError, and keeps nothing, where it is refused. Without an engine the next one is told.
        """

    @abstractmethod
    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        """Tells which sets of forbidden texts requests may name from now on; kept across restarts.

        Raises ConfigError, and keeps nothing, where there can be no masks of one. Without an engine the next one is
        told.
        """

    @abstractmethod
    async def sleep(self, model: str) -> None:
        """Lends the memory of a model that is `sleepable` to the others; returns when it sleeps.

        Its requests wait until `wake`. Raises ModelNotFoundError, ConfigError or EngineDeadError.
        """

    @abstractmethod
    async def wake(self, model: str) -> None:
        """Brings a sleeping model back; returns when its requests may run. Raises as `sleep`."""

    @abstractmethod
    async def load(self, model: ModelOptions) -> ModelInfo:
        """Serves one more model, beside the steps of the others; returns when its requests may run.

        Raises CheckpointError, ConfigError (MemoryBudgetError for too little memory), then nothing has changed, or
        EngineDeadError.
        """

    @abstractmethod
    async def unload(self, model: str, *, drains: bool = True) -> None:
        """Takes no more requests of a model and returns when it has gone: when those it has have ended, or at once.

        Raises ModelNotFoundError, ConfigError or EngineDeadError.
        """

    @abstractmethod
    async def explain(self, request_id: int) -> list[str]:
        """What the engine decided about a request of this gateway and why, one line each, oldest first.

        Also of one that has ended; empty where its last decisions do not name it. Raises EngineDeadError.
        """

    @abstractmethod
    def give_up(self, error: EngineDeadError) -> None:
        """No engine will come back: ends every request, and later ones at once, with `error`.

        An engine that lives all the same is told to stop them.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends every request with EngineDeadError and closes what engines are reached by."""

    def replica_of(self, request_id: int) -> str | None:
        """The replica that a request was last sent to; None where there is one engine, or none was free yet."""
        return None

    def find_model(self, name: str) -> ModelInfo:
        """The model that serves under `name` or an alias; raises ModelNotFoundError."""
        for model in self.models:
            if model.name == name or name in model.aliases:
                return model
        known = ", ".join(model.name for model in self.models)
        raise ModelNotFoundError(f"model {name!r} is not loaded; loaded: {known}", field="model")

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
