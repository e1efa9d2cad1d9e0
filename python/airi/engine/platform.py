"""Where an engine's models run: what loading, fleet, warm-up and steps need to know of a kind of device.

`platform_of` picks: the host, whose models are called with numpy arrays from a thread, or a GPU, on whose stream
steps are enqueued. Everything that depends on which of them it is goes through `Platform`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airi import _core
from airi.engine.arena import allocate_arena
from airi.engine.backends import (
    BACKENDS,
    LoadedModel,
    LoadOptions,
    ModelInfo,
    PoolingModel,
    ProgressCallback,
    StepInputs,
    get_backend,
)
from airi.engine.backends.cpu_embedder import CpuEmbedder, gives_vectors, load_embedder
from airi.engine.backends.cpu_encoder import CpuEncoder, load_encoder
from airi.engine.backends.cuda.detect import has_driver, obstacle
from airi.engine.encoder import is_encoder
from airi.engine.memory import Arena, HostArena, own
from airi.engine.options import EngineOptions, SettledOptions
from airi.engine.pipeline import StepPipeline
from airi.engine.pooling import PoolingRunner
from airi.engine.requests import RequestState
from airi.engine.resources import available_memory, usable_cores
from airi.engine.runner import ModelRunner, StepArrays, StepResult
from airi.engine.tiers import KvTiers
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.engine.loading import HostedModel

__all__ = ["HostPlatform", "Model", "Pipeline", "Platform", "Runner", "Tiers", "platform_of"]

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What every backend's loaded models have."""

    @property
    def info(self) -> ModelInfo: ...

    def bytes_per_block(self, block_size: int) -> int:
        """As `ModelInfo.bytes_per_block`."""
        ...


class Runner(Protocol):
    """A model with its block table and slots. See `ModelRunner`."""

    @property
    def index(self) -> int: ...

    @property
    def model(self) -> Model: ...

    def bound_to(self, arena: Arena) -> AbstractContextManager[None]:
        """Has steps run in another arena meanwhile. None may have been taken over."""
        ...

    def spread_out(self, num_blocks: int) -> AbstractContextManager[None]:
        """Meanwhile has each block of each slot another one of the arena's first so many, as far as they go."""
        ...

    def run_apart(self, step: StepInputs) -> None:
        """Runs a step that is not the core's, and waits for it."""
        ...

    def place_weights(self, memory: Any) -> None:
        """Moves the model's weights to a part of the arena."""
        ...

    def set_up(self, progress: ProgressCallback | None) -> None:
        """Prepares for the first step, once the weights are where they stay."""
        ...

    def refresh(self) -> None:
        """To be called before the first step after the arena was released, which may have moved it."""
        ...

    def close(self) -> None:
        """Lets the model go. No step may follow."""
        ...


class Tiers(Protocol):
    """As `KvTiers`."""

    def report_to(self, report: Any) -> None: ...

    def wait(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


class Pipeline(Protocol):
    """Runs planned steps in order. *Thread safety*: none.

    One step can be launched while another runs. Where steps are enqueued it begins as soon as that one ends; a thread
    begins it once that one has been collected.
    """

    @property
    def is_running(self) -> bool:
        """Whether a step was launched and not collected."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether no step can be launched before one is collected."""
        ...

    @property
    def done_fd(self) -> int:
        """A file descriptor that is readable when a step that was launched has run and was not collected."""
        ...

    def use(self, arrays: Sequence[StepArrays]) -> None:
        """Takes further steps from these buffer sets. The last one must have been collected."""
        ...

    def time_to_plan_s(self) -> float:
        """How long the plan of the next step should wait for requests yet, unless the running one ends first."""
        ...

    def launch(self, info: _core.StepInfo, states: Mapping[int, RequestState], *, since: float) -> None:
        """Starts a planned step, whose plan was begun at `since` by time.perf_counter()."""
        ...

    def collect(self) -> tuple[_core.StepInfo, StepResult, int]:
        """Waits for the oldest step: its plan, what it gave, and the microseconds that it took.

        What lies between two steps belongs to the second. An interrupt while waiting loses nothing.
        """
        ...


class Platform(Protocol):
    """One kind of device, ready to load models."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def options(self) -> SettledOptions:
        """The engine's, with this platform's own values where nothing was said."""
        ...

    def load(self, name: str, path: Path, options: LoadOptions) -> Model:
        """A model, called `name` in errors; raises CheckpointError, ConfigError or MemoryBudgetError."""
        ...

    def free_memory(self) -> int:
        """Bytes that may still be taken."""
        ...

    def arena(self, num_bytes: int) -> Arena:
        """Zeroed memory; raises MemoryBudgetError."""
        ...

    def host_bytes_of(self, arena: Arena) -> int:
        """How much of the host's memory an arena takes."""
        ...

    def step_arrays(self, rows: int, tokens: int, deltas: int, ops: int) -> tuple[StepArrays, ...]:
        """Two buffer sets, so that a step can be planned while the one before it runs."""
        ...

    def runner(self, index: int, name: str, model: Model, arena: Arena, max_model_len: int) -> Runner:
        """What runs the model's steps; raises MemoryBudgetError."""
        ...

    def tiers(self, arena: Arena) -> Tiers:
        """Memory and disk beside the arena, as the options say; raises MemoryBudgetError or ConfigError."""
        ...

    def pipeline(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        arena: Arena,
        tiers: Tiers | None,
    ) -> Pipeline:
        """What runs planned steps; `models` may grow."""
        ...

    def raise_if_dead(self) -> None:
        """Raises EngineDeadError once steps cannot run any more, whoever asks and however often."""
        ...

    def close(self) -> None:
        """Ends what runs beside this process for it. No step may follow; closing twice does nothing."""
        ...


def platform_of(options: EngineOptions) -> Platform:
    """Where these options' models run; raises ConfigError."""
    if options.backend in BACKENDS or (options.device == "cpu" and options.backend == "auto"):
        return HostPlatform(options)
    if options.device == "auto" and options.backend == "auto":
        why = _no_gpu(options)
        if why is not None:
            logger.info("running on the CPU: %s", why)
            options.check_for_cpu(f"{why}, and on CPUs")
            return HostPlatform(options)
    return _device_platform(options)


def _no_gpu(options: EngineOptions) -> str | None:
    """Why "auto" takes the CPU; without a driver torch is not even imported."""
    if not has_driver():
        return "no GPU's driver was found"
    return obstacle(0, options.tensor_parallel_size)


def _device_platform(options: EngineOptions) -> Platform:
    from airi.engine.backends.cuda.device import CpuDevice, CudaDevice, Device
    from airi.engine.backends.cuda.platform import DevicePlatform

    device: Device
    count = options.tensor_parallel_size
    if options.device == "cpu":
        device = CpuDevice()
    else:
        index = int(options.device.partition(":")[2] or 0)
        problem = obstacle(index)
        if problem is not None:
            raise ConfigError(f"device is {options.device!r}; {problem}, or give 'cpu'", field="device")
        problem = obstacle(index, count)
        if problem is not None:
            raise ConfigError(f"tensor_parallel_size is {count}; {problem}", field="tensor_parallel_size")
        device = CudaDevice(index)
    if count == 1:
        return DevicePlatform(device, options)
    from airi.engine.backends.cuda.parallel_platform import ParallelPlatform

    return ParallelPlatform(device, options)


class HostPlatform:
    """The CPUs of this machine."""

    def __init__(self, options: EngineOptions) -> None:
        """Sets how many threads compute."""
        self.options = options.settled(kv_fraction=0.5, block_size=16, max_batch_tokens=512)
        self.name = "reference" if options.backend == "reference" else "cpu"
        threads = options.threads or usable_cores()
        _core.cpu.set_num_threads(threads)
        if self.name == "reference":
            import torch

            torch.set_num_threads(threads)

    def load(self, name: str, path: Path, options: LoadOptions) -> LoadedModel | CpuEncoder | CpuEmbedder:
        """As `Platform.load`."""
        if path.is_dir() and is_encoder(path):
            return load_encoder(path, options)
        if gives_vectors(path):
            return load_embedder(path, options)
        return get_backend(self.name).load_model(path, options)

    def free_memory(self) -> int:
        """As `Platform.free_memory`."""
        return available_memory()

    def arena(self, num_bytes: int) -> HostArena:
        """As `Platform.arena`: the system commits a page when it is first written."""
        return HostArena(allocate_arena(num_bytes))

    def host_bytes_of(self, arena: Arena) -> int:
        """As `Platform.host_bytes_of`."""
        return arena.nbytes

    def step_arrays(self, rows: int, tokens: int, deltas: int, ops: int) -> tuple[StepArrays, ...]:
        """As `Platform.step_arrays`."""
        return tuple(StepArrays.allocate(rows, tokens, deltas, ops) for _ in range(2))

    def runner(
        self, index: int, name: str, model: Any, arena: Arena, max_model_len: int
    ) -> ModelRunner | PoolingRunner:
        """As `Platform.runner`."""
        options = self.options
        if isinstance(model, PoolingModel):
            return PoolingRunner(index, model)
        return ModelRunner(
            index,
            model,
            own(arena, HostArena),
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=max(options.max_batch_tokens, options.max_num_seqs),
            max_model_len=max_model_len,
        )

    def tiers(self, arena: Arena) -> KvTiers:
        """As `Platform.tiers`."""
        options = self.options
        return KvTiers(
            own(arena, HostArena).array,
            host_bytes=options.host_kv_memory,
            disk_folder=options.disk_kv_path,
            disk_bytes=options.disk_kv_memory,
        )

    def pipeline(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        arena: Arena,
        tiers: Tiers | None,
    ) -> StepPipeline:
        """As `Platform.pipeline`."""
        return StepPipeline(
            models, arrays, own(arena, HostArena), None if tiers is None else own(tiers, KvTiers)
        )

    def raise_if_dead(self) -> None:
        """As `Platform.raise_if_dead`: all is in this process."""

    def close(self) -> None:
        """As `Platform.close`: there is nothing."""
