"""What stands in an engine's place where none runs: behind models that other servers run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from airi.errors import ConfigError, EngineDeadError
from airi.transport.handle import EngineHandle
from airi.transport.messages import EngineStats, ForbidFor, GenerateRequest, ModelInfo
from airi.transport.stream import Sink

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["NoEngine"]


class NoEngine(EngineHandle):
    """Serves, as far as it goes, and has no models. What an engine would be told needs nobody to tell.

    *Thread safety*: as `EngineHandle`. *Invariant*: no request ever comes here.
    """

    def __init__(self) -> None:
        self.models: list[ModelInfo] = []
        self.alive = True
        self.draining = False
        self.dead: EngineDeadError | None = None

    @property
    def stats(self) -> EngineStats | None:
        """Nothing is counted."""
        return None

    @property
    def num_running(self) -> int:
        """None runs."""
        return 0

    def submit(self, request: GenerateRequest, sink: Sink) -> NoReturn:
        """Raises RuntimeError: a model without an engine is called otherwise."""
        raise RuntimeError(f"no engine runs {request.model}")

    def cancel(self, request_id: int) -> None:
        """Nothing runs."""

    def abandon(self, request_id: int) -> None:
        """Nothing runs."""

    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        """Nobody waits for a device."""

    async def forbid(self, sets: Sequence[ForbidFor]) -> None:
        """There are no answers to keep from anything."""

    async def sleep(self, model: str) -> None:
        """Raises ConfigError: no memory of a model is here."""
        raise ConfigError(f"{model} is run by another server; only models of an engine sleep", field="model")

    async def wake(self, model: str) -> None:
        """Raises as `sleep`."""
        await self.sleep(model)

    async def load(self, model: ModelOptions) -> ModelInfo:
        """Raises ConfigError."""
        raise ConfigError(f"no engine runs here that could load {model.name}", field="model")

    async def unload(self, model: str, *, drains: bool = True) -> None:
        """Raises ConfigError."""
        raise ConfigError(f"no engine runs here that could unload {model}", field="model")

    async def explain(self, request_id: int) -> list[str]:
        """Nothing was decided."""
        return []

    def give_up(self, error: EngineDeadError) -> None:
        """The server ends."""
        self.dead, self.alive = error, False

    def close(self) -> None:
        """Nothing is open."""
