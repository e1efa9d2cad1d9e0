"""A GPU, or the host in its place, as the engine's platform."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airi.engine.arena import format_bytes
from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.batch import BatchBuffers
from airi.engine.backends.cuda.budget import LESS_STEPS, LESS_WEIGHTS, enough_memory, first_line
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.interface import CudaModel
from airi.engine.backends.cuda.pipeline import DevicePipeline
from airi.engine.backends.cuda.runner import DeviceRunner
from airi.engine.backends.cuda.sampling_ops import sampling_ops_for
from airi.engine.backends.cuda.shards import Collective
from airi.engine.backends.cuda.tiers import DeviceTiers
from airi.engine.memory import Arena, own
from airi.engine.options import EngineOptions
from airi.engine.runner import StepArrays
from airi.errors import ConfigError, MemoryBudgetError

if TYPE_CHECKING:
    from airi.engine.loading import HostedModel
    from airi.engine.platform import Tiers

__all__ = ["DevicePlatform"]


class DevicePlatform:
    """One device, for which several models' steps are enqueued. *Thread safety*: none."""

    def __init__(self, device: Device, options: EngineOptions) -> None:
        """Takes the fixed buffers; raises ConfigError and MemoryBudgetError."""
        from airi.kernels.attention_plan import MAX_ROWS

        if options.max_num_seqs > MAX_ROWS:
            raise ConfigError(
                f"max_num_seqs is {options.max_num_seqs}; on GPUs it must be at most {MAX_ROWS}",
                field="max_num_seqs",
            )
        self.name = "cuda"
        self.device = device
        self._collective: Collective | None = None
        self.options = options = options.settled(kv_fraction=0.85, block_size=64, max_batch_tokens=2048)
        rows = options.max_num_seqs
        with self._enough_memory("the engine", "what steps are told in", "max_num_seqs or max_batch_tokens"):
            self._buffers = BatchBuffers(device, rows, max(options.max_batch_tokens, rows))
        self._sampling_ops = sampling_ops_for(device)

    def load(self, name: str, path: Path, options: LoadOptions) -> CudaModel:
        """As `Platform.load`."""
        from airi.engine.backends.cuda.model import CudaBackend

        with self._enough_memory(name, "the weights", LESS_WEIGHTS):
            return CudaBackend(self.device, collective=self._collective).load_model(path, options)

    def free_memory(self) -> int:
        """As `Platform.free_memory`."""
        return self.device.memory()[0]

    def arena(self, num_bytes: int) -> DeviceArena:
        """As `Platform.arena`."""
        return DeviceArena(self.device, num_bytes)

    def host_bytes_of(self, arena: Arena) -> int:
        """As `Platform.host_bytes_of`."""
        return arena.nbytes if self.device.is_host else 0

    def step_arrays(self, rows: int, tokens: int, deltas: int, ops: int) -> tuple[StepArrays, ...]:
        """As `Platform.step_arrays`; rows and tokens are those of the fixed buffers."""
        with self._enough_memory("the engine", "changes of block tables", "max_num_seqs or max_model_len"):
            return self._buffers.arrays(deltas, ops)

    def runner(self, index: int, name: str, model: Any, arena: Arena, max_model_len: int) -> DeviceRunner:
        """As `Platform.runner`."""
        options = self.options
        return DeviceRunner(
            index,
            model,
            own(arena, DeviceArena),
            self._buffers,
            self.device,
            self._sampling_ops,
            enough_memory=lambda what: self._enough_memory(name, what, LESS_STEPS),
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_model_len=max_model_len,
        )

    def tiers(self, arena: Arena) -> DeviceTiers:
        """As `Platform.tiers`."""
        options = self.options
        try:
            return DeviceTiers(
                self.device,
                own(arena, DeviceArena),
                host_bytes=options.host_kv_memory,
                disk_folder=options.disk_kv_path,
                disk_bytes=options.disk_kv_memory,
            )
        except RuntimeError as error:
            raise MemoryBudgetError(
                f"host_kv_memory is {format_bytes(options.host_kv_memory)}, which the system does not pin for the GPU "
                f"({first_line(error)}); lower it, or raise the limit of locked memory",
                field="host_kv_memory",
            ) from None

    def pipeline(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        arena: Arena,
        tiers: Tiers | None,
    ) -> DevicePipeline:
        """As `Platform.pipeline`."""
        return DevicePipeline(
            models,
            arrays,
            self.device,
            own(arena, DeviceArena),
            None if tiers is None else own(tiers, DeviceTiers),
        )

    def raise_if_dead(self) -> None:
        """As `Platform.raise_if_dead`: one device's failures show where steps are collected."""

    def close(self) -> None:
        """As `Platform.close`: memory goes with what uses it."""

    def _enough_memory(self, name: str, what: str, less: str) -> AbstractContextManager[None]:
        return enough_memory(self.device, name, what, less)
