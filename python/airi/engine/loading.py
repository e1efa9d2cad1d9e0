"""From EngineOptions to loaded models, an arena and the core's runtime."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.arena import ArenaPlan, KvDemand, allocate_arena, plan_arena
from airi.engine.backends import LoadedModel, LoadOptions, get_backend
from airi.engine.hub import resolve_model_path
from airi.engine.options import EngineOptions, ModelOptions
from airi.engine.resources import available_memory, usable_cores
from airi.engine.runner import ModelRunner, StepArrays
from airi.engine.step_log import ModelSettings, RecordingRuntime, RuntimeSettings, StepLog
from airi.engine.tiers import MAX_OPS, KvTiers
from airi.errors import MemoryBudgetError
from airi.sampling_params import MAX_PRIORITY

__all__ = ["NUM_BANDS", "EngineProgress", "HostedModel", "Hosting", "host_models"]

NUM_BANDS = 2 * MAX_PRIORITY + 1
"""A request of priority p starts in band MAX_PRIORITY - p: higher priority, smaller band."""

_MOST_DELTAS = 1 << 18
"""3 MiB per buffer set."""

EngineProgress = Callable[[str, str, float, float], None]
"""Called with (model name, stage, done, total)."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model with its place in the engine."""

    index: int
    options: ModelOptions
    path: Path
    runner: ModelRunner
    max_model_len: int
    """The window: what was asked for or the model's own, cut to what the arena can hold."""
    num_kv_blocks: int
    eos_token_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.options.name

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below this."""
        return self.runner.model.info.vocab_size


@dataclass(frozen=True, slots=True)
class Hosting:
    """Everything an engine steps with."""

    models: tuple[HostedModel, ...]
    runtime: _core.Runtime
    arrays: tuple[StepArrays, ...]
    """One per buffer set of the runtime."""
    arena: NDArray[np.uint8]
    tiers: KvTiers | None
    """None: what leaves the arena is gone."""


def host_models(options: EngineOptions, progress: EngineProgress | None) -> Hosting:
    """Loads every model and divides the arena; raises CheckpointError or ConfigError."""
    try:
        return _host_models(options, progress)
    except MemoryError as error:
        raise MemoryBudgetError(
            f"not enough memory: {str(error) or 'an allocation failed'}; what limits ask for grows with "
            "max_num_seqs, max_batch_tokens and max_model_len"
        ) from None


def _host_models(options: EngineOptions, progress: EngineProgress | None) -> Hosting:
    _set_threads(options)
    loaded = [_load(options, model, progress) for model in options.models]
    lengths = [_window(options, model, item) for model, item in zip(options.models, loaded, strict=True)]
    plan = _plan(options, loaded, lengths)
    arena = allocate_arena(plan.arena_bytes)
    hosted = []
    for index, (model_options, model) in enumerate(zip(options.models, loaded, strict=True)):
        window = min(lengths[index], plan.num_blocks[index] * options.block_size)
        runner = ModelRunner(
            index,
            model,
            arena,
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=max(options.max_batch_tokens, options.max_num_seqs),
            max_model_len=window,
        )
        hosted.append(
            HostedModel(
                index=index,
                options=model_options,
                path=model.info.path,
                runner=runner,
                max_model_len=window,
                num_kv_blocks=plan.num_blocks[index],
                eos_token_ids=model.info.eos_token_ids,
            )
        )
    configs = _model_configs(options, plan, hosted)
    arrays = _step_arrays(options, configs, hosted)
    vocab_size = max(model.vocab_size for model in hosted)
    runtime = _runtime(options, plan, configs, arrays, vocab_size)
    tiers = _tiers(options, arena)
    if tiers is not None:
        tiers.report_to(runtime.complete_transfers)
    return Hosting(tuple(hosted), runtime, arrays, arena, tiers)


def _tiers(options: EngineOptions, arena: NDArray[np.uint8]) -> KvTiers | None:
    if not options.host_kv_memory:
        return None
    return KvTiers(
        arena,
        host_bytes=options.host_kv_memory,
        disk_folder=options.disk_kv_path,
        disk_bytes=options.disk_kv_memory,
    )


def _set_threads(options: EngineOptions) -> None:
    threads = options.threads or usable_cores()
    _core.cpu.set_num_threads(threads)
    if options.backend_name == "reference":
        import torch

        torch.set_num_threads(threads)


def _load(options: EngineOptions, model: ModelOptions, progress: EngineProgress | None) -> LoadedModel:
    def on_bytes(done: int, total: int) -> None:
        if progress is not None:
            progress(model.name, "weights", done, total)

    path = resolve_model_path(model.path)
    load_options = LoadOptions(
        dtype=model.dtype or options.dtype,
        max_model_len=model.max_model_len or options.max_model_len,
        progress=on_bytes,
    )
    return get_backend(options.backend_name).load_model(path, load_options)


def _window(options: EngineOptions, model: ModelOptions, loaded: LoadedModel) -> int:
    asked = model.max_model_len or options.max_model_len
    own = loaded.info.max_model_len
    return own if asked is None else min(asked, own)


def _plan(options: EngineOptions, loaded: list[LoadedModel], lengths: list[int]) -> ArenaPlan:
    demands = [
        KvDemand(
            name=model_options.name,
            bytes_per_block=model.bytes_per_block(options.block_size),
            max_blocks=-(-length // options.block_size) * options.max_num_seqs,
            share=model_options.kv_share,
        )
        for model_options, model, length in zip(options.models, loaded, lengths, strict=True)
    ]
    return plan_arena(
        demands,
        kv_memory=options.kv_memory,
        available=available_memory(),
        fraction=options.kv_fraction,
    )


def _model_configs(
    options: EngineOptions, plan: ArenaPlan, hosted: Sequence[HostedModel]
) -> list[ModelSettings]:
    admission = _core.Admission.NO_EVICT if options.admission == "no_evict" else _core.Admission.MAX_UTIL
    return [
        ModelSettings(
            block_size=options.block_size,
            bytes_per_block=model.runner.model.bytes_per_block(options.block_size),
            max_model_len=model.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            num_slabs=plan.num_slabs[model.index],
            device_weight=model.options.weight,
            hash_seed=f"{model.path}|{model.runner.model.info.dtype}|{options.block_size}".encode(),
            admission=admission,
            enable_prefix_caching=options.prefix_caching,
        )
        for model in hosted
    ]


def _step_arrays(
    options: EngineOptions, configs: Sequence[_core.ModelConfig], hosted: Sequence[HostedModel]
) -> tuple[StepArrays, ...]:
    """Two buffer sets, so that a step can be planned while the one before it runs."""
    rows = options.max_num_seqs
    tokens = max(options.max_batch_tokens, rows)
    # Newcomers that share a long prefix bring a whole table each. With the least number of deltas
    # that the core works with, a step would admit one or two of them.
    longest = max(-(-model.max_model_len // options.block_size) for model in hosted)
    deltas = max(config.max_deltas for config in configs) + min(rows * longest, _MOST_DELTAS)
    ops = MAX_OPS if options.host_kv_memory else 0
    return tuple(StepArrays.allocate(rows, tokens, deltas, ops) for _ in range(2))


def _runtime(
    options: EngineOptions,
    plan: ArenaPlan,
    configs: Sequence[ModelSettings],
    arrays: Sequence[StepArrays],
    vocab_size: int,
) -> _core.Runtime:
    config = RuntimeSettings(
        arena_bytes=plan.arena_bytes,
        slab_bytes=plan.slab_bytes,
        hash_key=secrets.token_bytes(16),
        max_queued=options.max_queued,
        num_bands=NUM_BANDS,
        aging_us=None if options.aging_s is None else int(options.aging_s * 1e6),
        steps_ahead=int(options.async_scheduling),
        fairness_gap_tokens=options.fairness_gap_tokens,
        decision_records=options.decision_records,
        kv_event_records=options.kv_event_records,
        host_bytes=options.host_kv_memory,
        disk_bytes=options.disk_kv_memory,
    )
    buffers = [set_of_arrays.as_buffers() for set_of_arrays in arrays]
    if options.record_steps is None:
        return _core.Runtime(config, configs, buffers)
    return RecordingRuntime(StepLog(options.record_steps, vocab_size), config, configs, buffers)
