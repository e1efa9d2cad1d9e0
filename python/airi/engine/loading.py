"""From EngineOptions to loaded models, an arena and the core's runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airi import _core
from airi.engine.arena import (
    ArenaPlan,
    ElasticLimits,
    KvDemand,
    elastic_limits,
    format_bytes,
    plan_arena,
    plan_elastic_arena,
)
from airi.engine.backends import LoadOptions, PlaceableModel
from airi.engine.hub import resolve_model_path
from airi.engine.memory import Arena
from airi.engine.options import EngineOptions, ModelOptions, SettledOptions
from airi.engine.platform import Model, Platform, Runner, Tiers, platform_of
from airi.engine.resources import available_memory
from airi.engine.runner import StepArrays
from airi.engine.step_log import ModelSettings, RecordingRuntime, RuntimeSettings, StepLog
from airi.engine.tiers import MAX_OPS
from airi.errors import ConfigError, MemoryBudgetError
from airi.sampling_params import MAX_PRIORITY

__all__ = [
    "NUM_BANDS",
    "Addition",
    "EngineProgress",
    "HostedModel",
    "Hosting",
    "hash_seed",
    "host_models",
    "larger_arrays",
    "load_addition",
]

NUM_BANDS = 2 * MAX_PRIORITY + 1
"""A request of priority p starts in band MAX_PRIORITY - p: higher priority, smaller band."""

_MOST_DELTAS = 1 << 18
"""3 MiB per buffer set."""

_MAX_BORROW_US = 100_000
"""What a model whose tokens would else be late may owe the others: ten turns."""

EngineProgress = Callable[[str, str, float, float], None]
"""Called with (model name, stage, done, total)."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model with its place in the engine."""

    index: int
    options: ModelOptions
    path: Path
    runner: Runner
    max_model_len: int
    """The window: what was asked for or the model's own, cut to what the arena can hold."""
    block_size: int
    """Tokens of a KV block."""
    num_kv_blocks: int
    eos_token_ids: tuple[int, ...]
    weight_slabs: int = 0
    """Slabs of the arena that its weights lie in."""

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.options.name

    @property
    def is_pooling(self) -> bool:
        """Whether it reads texts whole and gives numbers."""
        return self.runner.model.info.is_pooling

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below this."""
        return self.runner.model.info.vocab_size


@dataclass(frozen=True, slots=True)
class Hosting:
    """Everything an engine steps with."""

    platform: Platform
    models: tuple[HostedModel, ...]
    runtime: _core.Runtime
    arrays: tuple[StepArrays, ...]
    """One per buffer set of the runtime."""
    arena: Arena
    plan: ArenaPlan
    tiers: Tiers | None
    """None: what leaves the arena is gone."""

    @property
    def is_elastic(self) -> bool:
        """Whether memory moves between the models."""
        return bool(self.plan.limits)

    def home(self, index: int, model: HostedModel) -> tuple[int, int]:
        """The first byte of the arena that is the home of a model's weights, and how many are; none: (0, 0)."""
        first = self.runtime.weights_at(index)
        size = self.plan.slab_bytes
        return (0, 0) if first is None else (first * size, model.weight_slabs * size)


@contextmanager
def _memory_errors_named() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise MemoryBudgetError(
            f"not enough memory: {str(error) or 'an allocation failed'}; what limits ask for grows with "
            "max_num_seqs, max_batch_tokens and max_model_len"
        ) from None


@_memory_errors_named()
def host_models(options: EngineOptions, progress: EngineProgress | None) -> Hosting:
    """Loads every model and divides the arena; raises CheckpointError or ConfigError."""
    platform = platform_of(options)
    try:
        return _host_on(platform, progress)
    except BaseException:
        platform.close()
        raise


def _host_on(platform: Platform, progress: EngineProgress | None) -> Hosting:
    options = platform.options
    loaded = [_load(platform, options, model, progress) for model in options.models]
    demands = [
        _demand(platform, options, model, item) for model, item in zip(options.models, loaded, strict=True)
    ]
    plan = _plan(platform, options, demands)
    arena = platform.arena(plan.arena_bytes)
    hosted = [
        _hosted(platform, options, index, model, item, arena, plan.num_blocks[index], plan.limits_of(index))
        for index, (model, item) in enumerate(zip(options.models, loaded, strict=True))
    ]
    configs = [
        _model_config(options, model, plan.num_slabs[model.index], plan.limits_of(model.index))
        for model in hosted
    ]
    arrays = _step_arrays(platform, options, configs, hosted)
    vocab_size = max(model.vocab_size for model in hosted)
    tiers = _tiers(platform, options, arena, max(demand.bytes_per_block for demand in demands))
    runtime = _runtime(options, plan, configs, arrays, vocab_size)
    if tiers is not None:
        tiers.report_to(runtime.complete_transfers)
    return Hosting(platform, tuple(hosted), runtime, arrays, arena, plan, tiers)


def _tiers(platform: Platform, options: SettledOptions, arena: Arena, block_bytes: int) -> Tiers | None:
    """Memory and disk space beside the arena, which is not touched yet; blocks have at most `block_bytes`."""
    if not options.host_kv_memory:
        return None
    for field in ("host_kv_memory", "disk_kv_memory"):
        size = getattr(options, field)
        if 0 < size < block_bytes:
            raise MemoryBudgetError(
                f"{field} is {format_bytes(size)}; it must hold a KV block, which has {format_bytes(block_bytes)}",
                field=field,
            )
    free = max(available_memory() - platform.host_bytes_of(arena), 0)
    if options.host_kv_memory > free:
        raise MemoryBudgetError(
            f"host_kv_memory is {format_bytes(options.host_kv_memory)}, but only {format_bytes(free)} is free beside "
            "the weights and kv_memory",
            field="host_kv_memory",
        )
    return platform.tiers(arena)


@dataclass(frozen=True, slots=True)
class Addition:
    """A model that is to join an elastic engine."""

    hosted: HostedModel
    settings: ModelSettings
    """As the core is told of it."""


@_memory_errors_named()
def load_addition(
    options: SettledOptions,
    hosting: Hosting,
    model: ModelOptions,
    index: int,
    progress: EngineProgress | None,
) -> Addition:
    """A model that joins as the `index`-th; raises CheckpointError or ConfigError."""
    platform = hosting.platform
    loaded = _load(platform, options, model, progress)
    demand = _demand(platform, options, model, loaded)
    plan = hosting.plan
    if demand.bytes_per_block > plan.slab_bytes:
        raise ConfigError(
            f"a KV block of {model.name} has {format_bytes(demand.bytes_per_block)}; the slabs of this engine have "
            f"{format_bytes(plan.slab_bytes)}",
            field="models",
        )
    limits = elastic_limits(demand, plan.slab_bytes, plan.arena_bytes // plan.slab_bytes)
    # What it can count on is the core's to say; more than the arena it cannot have.
    blocks = limits.max_slabs * (plan.slab_bytes // demand.bytes_per_block)
    hosted = _hosted(platform, options, index, model, loaded, hosting.arena, blocks, limits)
    return Addition(hosted, _model_config(options, hosted, 0, limits))


def larger_arrays(
    platform: Platform, options: SettledOptions, arrays: Sequence[StepArrays], addition: Addition
) -> tuple[StepArrays, ...] | None:
    """Buffer sets that steps of one more model fit too; None where they fit those that are there."""
    deltas = _num_deltas(options, [addition.settings], [addition.hosted])
    tokens = _batch_tokens(options, addition.hosted)
    if deltas <= len(arrays[0].deltas) and tokens <= len(arrays[0].tokens):
        return None
    deltas, tokens = max(deltas, len(arrays[0].deltas)), max(tokens, len(arrays[0].tokens))
    rows, ops = len(arrays[0].slots), len(arrays[0].ops)
    with _memory_errors_named():
        return platform.step_arrays(rows, tokens, deltas, ops)


def _hosted(
    platform: Platform,
    options: SettledOptions,
    index: int,
    model: ModelOptions,
    loaded: Model,
    arena: Arena,
    num_blocks: int,
    limits: ElasticLimits | None,
) -> HostedModel:
    block_size = _block_size(options, model, loaded)
    window = min(_window(options, model, loaded), num_blocks * block_size)
    runner = platform.runner(index, model.name, loaded, arena, window)
    return HostedModel(
        index=index,
        options=model,
        path=loaded.info.path,
        runner=runner,
        max_model_len=window,
        block_size=block_size,
        num_kv_blocks=num_blocks,
        eos_token_ids=loaded.info.eos_token_ids,
        weight_slabs=0 if limits is None else limits.weight_slabs,
    )


def _load(
    platform: Platform, options: SettledOptions, model: ModelOptions, progress: EngineProgress | None
) -> Model:
    def on_bytes(done: int, total: int) -> None:
        if progress is not None:
            progress(model.name, "weights", done, total)

    path = resolve_model_path(model.path)
    load_options = LoadOptions(
        dtype=model.dtype or options.dtype,
        max_model_len=model.max_model_len or options.max_model_len,
        progress=on_bytes,
        kv_cache_dtype=options.kv_cache_dtype,
        quantization=options.quantization,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    return platform.load(model.name, path, load_options)


def _window(options: SettledOptions, model: ModelOptions, loaded: Model) -> int:
    asked = model.max_model_len or options.max_model_len
    own = loaded.info.max_model_len
    return own if asked is None else min(asked, own)


def _block_size(options: SettledOptions, model: ModelOptions, loaded: Model) -> int:
    """What reads texts whole keeps each in one block."""
    return _window(options, model, loaded) if loaded.info.is_pooling else options.block_size


def _demand(platform: Platform, options: SettledOptions, model: ModelOptions, loaded: Model) -> KvDemand:
    weight_bytes = 0
    if model.sleepable:
        if not isinstance(loaded, PlaceableModel):
            raise ConfigError(
                f"sleepable needs a backend that can place weights; {platform.name} cannot",
                field="sleepable",
            )
        weight_bytes = loaded.weight_bytes
    block_size = _block_size(options, model, loaded)
    return KvDemand(
        name=model.name,
        bytes_per_block=loaded.bytes_per_block(block_size),
        max_blocks=-(-_window(options, model, loaded) // block_size) * options.max_num_seqs,
        share=model.kv_share,
        kv_min=model.kv_min or 0,
        kv_max=model.kv_max,
        weight_bytes=weight_bytes,
    )


def _plan(platform: Platform, options: SettledOptions, demands: list[KvDemand]) -> ArenaPlan:
    plan = plan_elastic_arena if any(model.is_elastic for model in options.models) else plan_arena
    return plan(
        demands,
        kv_memory=options.kv_memory,
        available=platform.free_memory(),
        fraction=options.kv_fraction,
    )


def hash_seed(model: HostedModel) -> bytes:
    """What besides the key its hashes of prefixes depend on."""
    info = model.runner.model.info
    return f"{model.path}|{info.dtype}|{info.kv_cache_dtype}|{model.block_size}".encode()


def _model_config(
    options: SettledOptions, model: HostedModel, num_slabs: int, limits: ElasticLimits | None
) -> ModelSettings:
    admission = _core.Admission.NO_EVICT if options.admission == "no_evict" else _core.Admission.MAX_UTIL
    slabs: dict[str, Any] = {"num_slabs": num_slabs}
    if limits is not None:
        slabs = {
            "min_slabs": limits.min_slabs,
            "max_slabs": limits.max_slabs,
            "weight_slabs": limits.weight_slabs,
            "slab_weight": model.options.kv_share,
        }
    return ModelSettings(
        vocab_size=model.vocab_size,
        block_size=model.block_size,
        bytes_per_block=model.runner.model.bytes_per_block(model.block_size),
        max_model_len=model.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_batch_tokens=_batch_tokens(options, model),
        whole_prompts=model.is_pooling,
        device_weight=model.options.weight,
        hash_seed=hash_seed(model),
        admission=admission,
        enable_prefix_caching=options.prefix_caching and not model.is_pooling,
        targets=options.targets(model.options),
        **slabs,
    )


def _batch_tokens(options: SettledOptions, model: HostedModel) -> int:
    """Of a step; a text that is read whole must fit one."""
    if model.is_pooling:
        return max(options.max_batch_tokens, model.max_model_len)
    return options.max_batch_tokens


def _step_arrays(
    platform: Platform,
    options: SettledOptions,
    configs: Sequence[_core.ModelConfig],
    hosted: Sequence[HostedModel],
) -> tuple[StepArrays, ...]:
    rows = options.max_num_seqs
    tokens = max(rows, *(_batch_tokens(options, model) for model in hosted))
    deltas = _num_deltas(options, configs, hosted)
    moves = options.host_kv_memory or any(model.options.is_elastic for model in hosted)
    ops = MAX_OPS if moves else 0
    return platform.step_arrays(rows, tokens, deltas, ops)


def _num_deltas(
    options: SettledOptions, configs: Sequence[_core.ModelConfig], hosted: Sequence[HostedModel]
) -> int:
    # Newcomers that share a long prefix bring a whole table each. With the least number of deltas
    # that the core works with, a step would admit one or two of them.
    longest = max(-(-model.max_model_len // model.block_size) for model in hosted)
    most = max(config.max_deltas for config in configs)
    return most + min(options.max_num_seqs * longest, _MOST_DELTAS)


def _runtime(
    options: SettledOptions,
    plan: ArenaPlan,
    configs: Sequence[ModelSettings],
    arrays: Sequence[StepArrays],
    vocab_size: int,
) -> _core.Runtime:
    config = RuntimeSettings(
        arena_bytes=plan.arena_bytes,
        slab_bytes=plan.slab_bytes,
        hash_key=bytes.fromhex(options.hash_key),
        max_queued=options.max_queued,
        num_bands=NUM_BANDS,
        max_borrow_us=_MAX_BORROW_US,
        aging_us=None if options.aging_s is None else int(options.aging_s * 1e6),
        steps_ahead=int(options.async_scheduling),
        fairness_gap_tokens=options.fairness_gap_tokens,
        locality_quantum_tokens=options.locality_quantum_tokens if options.schedule_policy == "lpm" else None,
        dedupe_steps=options.dedupe_steps,
        decision_records=options.decision_records,
        kv_event_records=options.kv_event_records,
        host_bytes=options.host_kv_memory,
        disk_bytes=options.disk_kv_memory,
    )
    buffers = [set_of_arrays.as_buffers() for set_of_arrays in arrays]
    if options.record_steps is None:
        return _core.Runtime(config, configs, buffers)
    return RecordingRuntime(StepLog(options.record_steps, vocab_size), config, configs, buffers)
