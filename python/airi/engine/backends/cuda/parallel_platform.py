"""Several devices of a host, each with its part of every model, as the engine's platform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.interface import CudaModel
from airi.engine.backends.cuda.parallel import ParallelModel
from airi.engine.backends.cuda.pipeline import DevicePipeline
from airi.engine.backends.cuda.platform import DevicePlatform
from airi.engine.backends.cuda.ranks import Allocate, Load, Probe
from airi.engine.backends.cuda.team import Team
from airi.engine.memory import Arena
from airi.engine.options import EngineOptions
from airi.engine.runner import StepArrays

if TYPE_CHECKING:
    from airi.engine.loading import HostedModel
    from airi.engine.platform import Tiers

__all__ = ["ParallelPlatform"]


class ParallelPlatform(DevicePlatform):
    """The first of the devices is this process's, with the core and the sampling; each other one has a worker.

    Arenas are of the same size on all of them: a block has its kv heads on each. *Thread safety*: none.
    """

    def __init__(self, device: Device, options: EngineOptions) -> None:
        """Starts the workers; raises ConfigError, MemoryBudgetError or EngineDeadError."""
        super().__init__(device, options)
        self._world = options.tensor_parallel_size
        self._num_models = 0
        self._team = Team(
            device,
            self._world,
            first_device=device.torch_device.index or 0,
            max_rows=self._buffers.batch.max_rows,
            max_tokens=self._buffers.batch.max_tokens,
        )
        self._collective = self._team.group

    def load(self, name: str, path: Path, options: LoadOptions) -> CudaModel:
        """As `Platform.load`: each rank reads its part."""
        order = Load(
            name,
            str(path),
            options.dtype,
            options.max_model_len,
            options.kv_cache_dtype,
            options.quantization,
        )
        with self._team.alongside(order):
            local = super().load(name, path, options)
        model = ParallelModel(self._num_models, local, self._team, self._buffers.packed)
        self._num_models += 1
        return model

    def free_memory(self) -> int:
        """As `Platform.free_memory`: of the device that has the least."""
        least = min(super().free_memory(), *self._team.ask(Probe()))
        return least // self._world if self.device.is_host else least

    def arena(self, num_bytes: int) -> DeviceArena:
        """As `Platform.arena`: on each device."""
        with self._team.alongside(Allocate(num_bytes)):
            return super().arena(num_bytes)

    def pipeline(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        arena: Arena,
        tiers: Tiers | None,
    ) -> DevicePipeline:
        """As `Platform.pipeline`; no step is waited for without the other ranks."""
        pipeline = super().pipeline(models, arrays, arena, tiers)
        pipeline.give_up_with(self._team.lost)
        return pipeline

    def raise_if_dead(self) -> None:
        """As `Platform.raise_if_dead`."""
        self._team.raise_if_lost()

    def close(self) -> None:
        """As `Platform.close`."""
        self._team.close()
