"""Whether a config's models fit the memory of the device that they are to run on, with the amounts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airi._sources import is_remote
from airi.config.accelerators import ACCELERATORS, ANY, CPU
from airi.config.load import ConfigFile
from airi.config.mistakes import Mistake
from airi.config.options import TASKS, engine_options, version_options
from airi.config.rollouts import first_stable, releases_of
from airi.engine.arena import KvDemand, format_bytes, plan_arena, plan_elastic_arena
from airi.engine.backends import LoadOptions, ModelInfo
from airi.engine.backends.cpu_embedder import embedder_info, gives_vectors
from airi.engine.backends.cpu_encoder import encoder_info
from airi.engine.backends.cuda.detect import has_driver
from airi.engine.encoder import is_encoder
from airi.engine.hub import is_hub_reference, parse_hub_reference
from airi.engine.loader import open_model
from airi.engine.options import EngineOptions, ModelOptions
from airi.engine.replicas import replica_options
from airi.engine.resources import available_memory
from airi.errors import AiriError, CheckpointError, MemoryBudgetError
from airi.lifecycle.registry import version_name

__all__ = ["Device", "Fit", "check_fit", "local_folder"]

_HOST_BLOCK_SIZE, _GPU_BLOCK_SIZE = 16, 64
_HOST_FRACTION, _GPU_FRACTION = 0.5, 0.85
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Device:
    """Memory that models would share."""

    name: str
    free: int
    """Bytes of one of it."""
    is_host: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was found out; `mistakes` is empty where all fits."""

    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be found out, and what fits how well."""


@dataclass(frozen=True, slots=True)
class _Opened:
    options: ModelOptions
    info: ModelInfo


def check_fit(file: ConfigFile) -> Fit:
    """Reads the models' configs and the headers of their weights; computes what they take of each device."""
    if all(model.upstream is not None for model in file.config.models):
        return Fit()
    options = engine_options(file)
    replicas = file.config.engine.replicas
    replica_options(options, replicas)  # raises for what cannot be divided
    mistakes: list[Mistake] = []
    notes: list[str] = []
    devices = _devices(file, options, mistakes)
    on_device = bool(devices) and not any(device.is_host for device in devices)
    opened: list[_Opened] = []
    places = [i for i, model in enumerate(file.config.models) if model.upstream is None]
    for i, model in zip(places, options.models, strict=True):
        try:
            folder = local_folder(model.path)
            if folder is None:
                notes.append(
                    f"{model.name}: {file.masked(model.path)} is not on this machine yet, so its size is not known"
                )
            else:
                info = _open(folder, options, model, on_device=on_device)
                mistakes += _task_mistakes(file, i, info)
                opened.append(_Opened(model, info))
        except AiriError as error:
            accepted = f"a model that can be served ({file.masked(str(error))})"
            mistakes.append(file.mistake(_key_at_fault(file, i, error), accepted))
    held: dict[str, _Opened | None] = {model.options.name: model for model in opened}
    mistakes += _other_versions(file, options, held, on_device=on_device)
    if devices and opened and not mistakes:
        results = [_fit_on(device, _on(device, options, replicas), opened) for device in devices]
        if all(isinstance(result, MemoryBudgetError) for result in results):
            mistakes += _misfits(file, results)
        notes += [result for result in results if isinstance(result, str)]
        fitting = [d for d, result in zip(devices, results, strict=True) if isinstance(result, str)]
        for result in _rollouts(file, options, fitting, held):
            (mistakes if isinstance(result, Mistake) else notes).append(result)  # type: ignore[arg-type]
    return Fit(mistakes=tuple(mistakes), notes=tuple(notes))


def _other_versions(
    file: ConfigFile, options: EngineOptions, held: dict[str, _Opened | None], *, on_device: bool
) -> Iterator[Mistake]:
    """Versions that come later and cannot be served; adds those that can to `held`, as None what is not here yet."""
    versioned = file.config.versioned
    for i, model in enumerate(file.config.models):
        for k, version in enumerate(model.versions[1:] if model in versioned else (), start=1):
            try:
                later = version_options(file, model.name, version.id)
                folder = local_folder(later.path)
                held[later.name] = None
                if folder is not None:
                    info = _open(folder, options, later, on_device=on_device)
                    held[later.name] = _Opened(later, info)
                    yield from _task_mistakes(file, i, info)
            except AiriError as error:
                accepted = f"a model that can be served ({file.masked(str(error))})"
                yield file.mistake(("models", i, "versions", k, "source"), accepted)


def _devices(file: ConfigFile, options: EngineOptions, mistakes: list[Mistake]) -> list[Device]:
    """The devices that models name, or the one of this machine that the engine would take."""
    named = [
        (i, {name.lower() for name in model.resources.accelerator})
        for i, model in enumerate(file.config.models)
        if model.resources.accelerator and ANY not in map(str.lower, model.resources.accelerator)
    ]
    if not named:
        return _own_device(file, options, mistakes)
    common = set.intersection(*(names for _, names in named))
    if not common:
        accepted = "one that the other models name too, as all run on one device"
        mistakes.append(file.mistake(("models", named[-1][0], "resources", "accelerator"), accepted))
    found = [
        Device(name, size, is_host=False) for name, size in ACCELERATORS.items() if name.lower() in common
    ]
    return found + [_host(file)] * (CPU in common)


def _host(file: ConfigFile) -> Device:
    """This machine's memory, or what each replica has of it."""
    replicas = file.config.engine.replicas
    name = "this machine" if replicas == 1 else f"this machine, for each of {replicas} replicas"
    return Device(name, available_memory() // replicas, is_host=True)


def _on(device: Device, options: EngineOptions, replicas: int) -> EngineOptions:
    """What one replica would have there."""
    if options.kv_memory is None or not device.is_host:
        return options
    return replace(options, kv_memory=options.kv_memory // replicas)


def _own_device(file: ConfigFile, options: EngineOptions, mistakes: list[Mistake]) -> list[Device]:
    if options.device == "cpu" or (options.device == "auto" and not has_driver()):
        return [_host(file)]
    from airi.engine.backends.cuda.detect import obstacle

    index = int(options.device.partition(":")[2] or 0)
    count = max(options.tensor_parallel_size, file.config.engine.replicas)
    problem = obstacle(index, count) if has_driver() else "no GPU's driver was found"
    if problem is None:
        import torch

        free, _ = torch.cuda.mem_get_info(index)
        return [Device(torch.cuda.get_device_name(index), free, is_host=False)]
    if options.device == "auto":
        return [_host(file)]
    accepted = (
        f"a device that there is ({problem}), or resources.accelerator of models that will run elsewhere"
    )
    mistakes.append(file.mistake(("engine", "device"), accepted))
    return []


def local_folder(path: str) -> Path | None:
    """Where a model's files are on this machine; None for what was never fetched, or is fetched to see."""
    if is_remote(path) and not is_hub_reference(path):
        return None
    if not is_remote(path):
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError("it is a file" if folder.exists() else "there is no such folder")
        return folder
    from huggingface_hub import snapshot_download

    reference = parse_hub_reference(path)
    try:
        folder = Path(snapshot_download(reference.repo, revision=reference.revision, local_files_only=True))
    except Exception:  # its errors differ between releases, and each means that it is not there
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _open(folder: Path, options: EngineOptions, model: ModelOptions, *, on_device: bool) -> ModelInfo:
    load = LoadOptions(
        dtype=model.dtype or options.dtype,
        max_model_len=model.max_model_len or options.max_model_len,
        kv_cache_dtype=options.kv_cache_dtype,
        quantization=options.quantization,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    if is_encoder(folder):
        return encoder_info(folder, load)
    if gives_vectors(folder):
        return embedder_info(folder, load)
    return open_model(folder, load, on_device=on_device).info


def _task_mistakes(file: ConfigFile, index: int, info: ModelInfo) -> Iterator[Mistake]:
    said = file.config.models[index].task
    if TASKS[said] != info.task:
        named = next(name for name, task in TASKS.items() if task == info.task)
        yield file.mistake(
            ("models", index, "task"), f"{named}, as its checkpoint is of such a model", value=repr(said)
        )


def _key_at_fault(file: ConfigFile, index: int, error: AiriError) -> tuple[str | int, ...]:
    """The key that an error is about: its model's source unless a setting is named."""
    model = file.config.models[index]
    for name in ("max_model_len", "dtype"):
        if str(error).startswith(f"{name} is"):
            own = getattr(model.engine, name) is not None
            return ("models", index, "engine", name) if own else ("engine", name)
    return ("models", index, "source") if model.source else ("models", index, "versions", 0, "source")


def _fit_on(device: Device, options: EngineOptions, models: Sequence[_Opened]) -> str | MemoryBudgetError:
    """A sentence with the amounts, or why it does not fit."""
    weights = {model.options.name: _weight_bytes(options, model.info) for model in models}
    block_size = options.block_size or (_HOST_BLOCK_SIZE if device.is_host else _GPU_BLOCK_SIZE)
    demands = list(_demands(options, models, block_size))
    least = sum(max(demand.kv_min, demand.bytes_per_block) for demand in demands)
    kv = max(least, options.kv_memory or 0)
    total = sum(weights.values())
    each = ", ".join(f"{name} {format_bytes(size)}" for name, size in weights.items())
    amounts = f"{format_bytes(total)} of weights ({each}) and {format_bytes(kv)} of keys and values"
    if total + kv > device.free:
        free = f"{format_bytes(device.free)} on {device.name}"
        return MemoryBudgetError(f"{format_bytes(total + kv)}, {amounts}; accepted: at most {free}")
    plan = plan_elastic_arena if any(model.options.is_elastic for model in models) else plan_arena
    fraction = options.kv_fraction or (_HOST_FRACTION if device.is_host else _GPU_FRACTION)
    try:
        plan(demands, kv_memory=options.kv_memory, available=device.free - total, fraction=fraction)
    except MemoryBudgetError as error:
        return MemoryBudgetError(
            f"more than fits {device.name}; accepted: a plan of memory that adds up ({error})"
        )
    return f"fits {device.name}: {amounts}, of {format_bytes(device.free)}"


def _weight_bytes(options: EngineOptions, info: ModelInfo) -> int:
    """Of one device. Scales of quantised weights, and what stays unquantised, are small beside the rest."""
    width = 1 if options.quantization is not None else _WIDTHS[info.dtype]
    return -(-info.num_parameters * width // options.tensor_parallel_size)


def _demands(options: EngineOptions, models: Sequence[_Opened], block_size: int) -> Iterator[KvDemand]:
    for model in models:
        tokens = model.info.block_size(block_size)
        per_block = -(-model.info.bytes_per_block(tokens) // options.tensor_parallel_size)
        yield KvDemand(
            name=model.options.name,
            bytes_per_block=-(-per_block // 4096) * 4096,
            max_blocks=-(-model.info.max_model_len // tokens) * options.max_num_seqs,
            share=model.options.kv_share,
            kv_min=model.options.kv_min or 0,
            kv_max=model.options.kv_max,
        )


def _rollouts(
    file: ConfigFile, options: EngineOptions, devices: Sequence[Device], held: Mapping[str, _Opened | None]
) -> Iterator[Mistake | str]:
    """Candidates that do not fit beside what is served before; what of them cannot be found out.

    An engine takes its memory for keys and values when it starts, and a candidate's weights have to fit beside it.
    """
    config = file.config
    releases = releases_of(config)

    def names(line: str, release: str) -> set[str]:
        return {version_name(model, version) for model, version in releases[line][release].items()}

    first = {
        model.name for model in config.models if model.upstream is None and model not in config.versioned
    }
    first |= {name for line in releases for name in names(line, first_stable(config, line))}
    for line, rollout in config.rollouts.items():
        stable = first_stable(config, line)
        others = (release for release in releases[line] if release != stable)
        for candidate in others if rollout.candidate is None else (rollout.candidate,):
            later = names(line, candidate) - first
            missing = sorted(name for name in first | later if held.get(name) is None)
            if missing:
                what = f"is not on this machine yet, so whether {candidate} fits beside {stable} is not known"
                yield f"rollouts.{line}: {missing[0]} {what}"
                continue
            models = [
                [each for each in map(held.get, sorted(part)) if each is not None] for part in (first, later)
            ]
            found = [_beside(file, device, options, *models) for device in devices]
            if found and all(found):
                path = ("rollouts", line) if rollout.candidate is None else ("rollouts", line, "candidate")
                what, _, hint = found[0].partition("; ")
                yield Mistake(
                    file.document.name,
                    file.document.line(path),
                    path,
                    f"is {candidate}: {stable} beside it takes {what}",
                    hint,
                )
                break


def _beside(
    file: ConfigFile,
    device: Device,
    options: EngineOptions,
    first: Sequence[_Opened],
    later: Sequence[_Opened],
) -> str:
    """Why models cannot be loaded where others are served, and what to lower; empty where they can."""
    options = _on(device, options, file.config.engine.replicas)
    block_size = options.block_size or (_HOST_BLOCK_SIZE if device.is_host else _GPU_BLOCK_SIZE)
    weights = {model.options.name: _weight_bytes(options, model.info) for model in (*first, *later)}
    before = sum(weights[model.options.name] for model in first)
    fraction = options.kv_fraction or (_HOST_FRACTION if device.is_host else _GPU_FRACTION)
    demands = list(_demands(options, [*first, *later], block_size))
    try:
        plan = plan_elastic_arena(
            demands[: len(first)],
            kv_memory=options.kv_memory,
            available=device.free - before,
            fraction=fraction,
        )
    except MemoryBudgetError:
        return ""  # those that are served first are told of by themselves, or stable is another by now
    kv, total = plan.arena_bytes, sum(weights.values())
    least = max(
        sum(max(-(-d.kv_min // plan.slab_bytes), 1) for d in demands) * plan.slab_bytes, plan.slab_bytes
    )
    each = ", ".join(f"{name} {format_bytes(size)}" for name, size in weights.items())
    amounts = f"{format_bytes(total)} of weights ({each}) and {format_bytes(kv)} of keys and values"
    if total + least > device.free:
        hint = f"weights that leave {format_bytes(least)} of {format_bytes(device.free)} on {device.name}"
    elif total + kv > device.free:
        hint = (
            f"at most {format_bytes(device.free)} on {device.name}, "
            f"so engine.kv_memory of at most {format_bytes(device.free - total)}"
        )
    elif least > kv:
        hint = f"resources.kv_memory.min of all models within these, which are {format_bytes(least)}"
    else:
        return ""
    return f"{format_bytes(total + kv)}, {amounts}; accepted: {hint}"


def _misfits(file: ConfigFile, results: Sequence[str | MemoryBudgetError]) -> Iterator[Mistake]:
    for result in results:
        what, _, hint = str(result).partition("; ")
        yield Mistake(file.document.name, file.document.line(("models",)), ("models",), f"is {what}", hint)
