"""What a user may choose about an engine. Every mistake is a ConfigError naming field, value and what is accepted."""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields

from airi._sources import is_remote, source_name
from airi.engine.backends import BACKENDS, DTYPES, KV_CACHE_DTYPES, QUANTIZATIONS
from airi.engine.targets import TargetMs, check_target, targets_by_band
from airi.errors import ConfigError

__all__ = ["ADMISSIONS", "DEVICES", "SCHEDULE_POLICIES", "EngineOptions", "ModelOptions", "SettledOptions"]

DEVICES = ("auto", "cpu", "cuda", "cuda:N")
ADMISSIONS = ("max_util", "no_evict")
SCHEDULE_POLICIES = ("lpm", "fcfs")

_BOUNDS = {
    "threads": (1, 1024),
    "kv_memory": (1, 2**63 - 1),
    "kv_min": (0, 2**63 - 1),
    "kv_max": (1, 2**63 - 1),
    "block_size": (1, 256),
    "max_num_seqs": (1, 2**20),
    "max_batch_tokens": (1, 2**30),
    "max_model_len": (2, 2**30),
    "max_queued": (1, 2**30),
    "host_kv_memory": (0, 2**50),
    "disk_kv_memory": (0, 2**50),
    "fairness_gap_tokens": (1, 2**40),
    "locality_quantum_tokens": (1, 2**40),
    "dedupe_steps": (0, 2**20),
    "decision_records": (0, 2**24),
    "kv_event_records": (0, 2**24),
    "tensor_parallel_size": (1, 64),
}
"""What the core works with."""
_OPTIONAL = (
    "threads",
    "kv_memory",
    "max_model_len",
    "fairness_gap_tokens",
    "block_size",
    "max_batch_tokens",
)
_MOST_AGING_S = 1e9
_MOST_WARMUP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """One model to serve."""

    path: str
    """A local checkpoint folder or `hf://org/name[@revision]`."""
    name: str = ""
    """What requests call it; empty means the base name of the folder or repository."""
    aliases: tuple[str, ...] = ()
    weight: float = 1.0
    """Share of device time against the other models of the engine, while several have work."""
    kv_share: float = 1.0
    """Share of the KV arena against the other models of the engine."""
    kv_min: int | None = None
    """Bytes of the KV arena that this model can have whenever it needs them. With this, `kv_max` or `sleepable` on any
    model, KV memory moves between the models of the engine as their requests need it, `kv_share` weighing them."""
    kv_max: int | None = None
    """Bytes of the KV arena that it has at most."""
    sleepable: bool = False
    """Whether its weights lie in the arena, so that `Engine.sleep` lends their space to other models."""
    max_model_len: int | None = None
    """Overrides the engine's."""
    dtype: str | None = None
    """Overrides the engine's."""
    ttft_ms: TargetMs = None
    """Overrides the engine's."""
    itl_ms: TargetMs = None
    """Overrides the engine's."""
    public_prefixes: tuple[tuple[int, ...], ...] = ()
    """Token ids that prompts may begin with and share although `EngineOptions.isolate_tenants`, such as those of a
    system prompt that all tenants have."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path of a model is empty; give a folder or hf://org/name", field="path")
        for field in ("weight", "kv_share"):
            value = getattr(self, field)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ConfigError(f"{field} is {value}; it must be a positive number", field=field)
        for field in ("max_model_len", "kv_min", "kv_max"):
            if getattr(self, field) is not None:
                _check_whole(field, getattr(self, field))
        if self.kv_min is not None and self.kv_max is not None and self.kv_min > self.kv_max:
            raise ConfigError(
                f"kv_min is {self.kv_min}; it must be at most kv_max, which is {self.kv_max}", field="kv_min"
            )
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, DTYPES)
        for field in ("ttft_ms", "itl_ms"):
            check_target(field, getattr(self, field))
        for prefix in self.public_prefixes:
            if not prefix or not all(isinstance(token, int) and token >= 0 for token in prefix):
                raise ConfigError(
                    "public_prefixes holds something else than token ids; each must be a tuple of at least one",
                    field="public_prefixes",
                )
        if not self.name:
            object.__setattr__(self, "name", _default_name(self.path))

    @property
    def is_elastic(self) -> bool:
        """Whether it asks for memory that moves."""
        return self.kv_min is not None or self.kv_max is not None or self.sleepable


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """An engine: its models, its device and its limits."""

    models: tuple[ModelOptions, ...]
    device: str = "auto"
    """"cpu", "cuda" (the first GPU, ROCm's too), "cuda:N", or "auto": a GPU where there is one that can be used."""
    backend: str = "auto"
    """How models run: as the device does, or "reference" (plain torch, slow, for comparison). "cuda" on the device
    "cpu" runs all that the GPU's engine does on the host, with plain torch in its kernels' place, for tests."""
    dtype: str = "auto"
    """"auto" is the checkpoint's own. CPUs compute in bfloat16 where that is float16."""
    kv_cache_dtype: str = "auto"
    """What keys and values are stored as on a GPU: "auto", which is `dtype`, "fp8" or "int8"."""
    quantization: str | None = None
    """To what weights are quantised on a GPU: "fp8" or "int8"."""
    tensor_parallel_size: int = 1
    """How many GPUs share each model: each has its part of the weights and of `kv_memory`, which is per GPU."""
    threads: int | None = None
    """None means the cores this process may use."""
    kv_memory: int | None = None
    """Bytes of the KV arena, shared by all models. None takes `kv_fraction` of what is free after loading."""
    kv_fraction: float | None = None
    """None is 0.5 on CPUs, whose memory others use too, and 0.85 on GPUs: activations and graphs take the rest."""
    block_size: int | None = None
    """Tokens per KV block. None is 16 on CPUs and 64 on GPUs, whose kernels then load whole blocks."""
    max_num_seqs: int = 256
    """Requests of one model that run at the same time."""
    max_batch_tokens: int | None = None
    """Tokens in one step. Running requests wait for a step's prefills. None is 512 on CPUs, where longer steps gain
    nothing: 2,048 tokens cost 1.16 CPU seconds in steps of 256, 512, 1,024 or 2,048 (135 M parameters, bf16, 2 cores).
    On GPUs it is 2,048, which is enough to be bound by arithmetic."""
    max_model_len: int | None = None
    """Prompt and completion together; None means the model's own window."""
    max_queued: int = 4096
    """Requests that may wait, over all models, before further ones are refused."""
    admission: str = "max_util"
    """"max_util" admits on what the next step needs and may preempt; "no_evict" reserves to completion."""
    prefix_caching: bool = True
    host_kv_memory: int = 0
    """Bytes of host memory for copies of blocks that leave the arena; prefixes are loaded from them again where that
    takes less time than computing them. 0: none."""
    disk_kv_path: str | None = None
    """Folder on a disk for copies that leave the host memory in turn; needs `host_kv_memory`."""
    disk_kv_memory: int = 0
    """Bytes on that disk, taken at the start."""
    async_scheduling: bool = True
    """Plans each step while the one before it runs. The texts are the same without."""
    aging_s: float | None = 30.0
    """Waiting time after which a request counts as one priority level higher; None means never."""
    ttft_ms: TargetMs = None
    """What requests are promised from their arrival to the first token, in milliseconds: one number, or some for
    priorities, as ((0, 500), (-4, 5000)). What cannot keep it any more lets the others pass. None: nothing."""
    itl_ms: TargetMs = None
    """What streams are promised from one token to the next: a step holds no more of other requests' prompts than
    that allows. None: as much as `max_batch_tokens` allows."""
    step_warmup_s: float = 0.5
    """How long, about, to measure steps at the start where there are such targets; 0 leaves the engine to learn
    from requests how long steps take, and to promise nothing before."""
    fairness_gap_tokens: int | None = None
    """Bounds how far one waiting tenant falls behind another in service, per weight: a request that finds no place
    takes that of a tenant which leads by more. In tokens of the prompt; a generated one counts as two. A few
    thousand at least, as every such change of place is a preemption. None: it waits until others finish."""
    schedule_policy: str = "lpm"
    """Who of the waiting goes first: "lpm", whose prompt has the longest cached prefix, within what tenants are due;
    or "fcfs", the first of the tenant that was served least. With one tenant "fcfs" is the order of arrival."""
    locality_quantum_tokens: int = 4096
    """With "lpm": how far, in tokens and per weight, a tenant may be served ahead of the others because its prompts
    are cached, and how much of a tenant's prompts may pass its oldest one."""
    dedupe_steps: int = 128
    """How many steps a prompt may wait, in all, for a prefix that another one is just computing; 0 means never. It
    waits only while that gives it the prefix sooner than computing it once more."""
    isolate_tenants: bool = False
    """Whether tenants share no cached prefix but `ModelOptions.public_prefixes`, so that none learns from hits what
    others have sent."""
    decision_records: int = 1 << 14
    """How many of the last decisions about requests are kept for `Engine.explain`; 48 bytes each."""
    kv_event_records: int = 1 << 14
    """How many of the last KV events are kept for readers; 48 bytes each."""
    hash_key: str | None = None
    """16 bytes in hex, by which blocks of prefixes are found. Where replicas have the same one, and checkpoints at the
    same paths, a gateway knows what each has cached; None draws one."""
    record_steps: str | None = None
    """File for everything that the core is told and digests of what it plans, for `airi simulate --replay`. Tokens are
    replaced by others, equal ones by equal ones."""
    seed: int | None = None
    """Fixes the seeds drawn for requests that bring none."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models is empty; give at least one", field="models")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            _check_choice("device", self.device, DEVICES)
        _check_choice("backend", self.backend, ("auto", *BACKENDS, "cuda"))
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.quantization is not None:
            _check_choice("quantization", self.quantization, QUANTIZATIONS)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("admission", self.admission, ADMISSIONS)
        _check_choice("schedule_policy", self.schedule_policy, SCHEDULE_POLICIES)
        for field in _BOUNDS.keys() - {"kv_min", "kv_max"}:
            value = getattr(self, field)
            if value is not None or field not in _OPTIONAL:
                _check_whole(field, value)
        if self.block_size is not None and self.block_size % 8:
            raise ConfigError(
                f"block_size is {self.block_size}; it must be a multiple of 8 up to 256", field="block_size"
            )
        if self.kv_fraction is not None and not 0.0 < self.kv_fraction <= 0.95:
            raise ConfigError(
                f"kv_fraction is {self.kv_fraction:g}; it must be in (0, 0.95]", field="kv_fraction"
            )
        if self.aging_s is not None and not 0.0 < self.aging_s <= _MOST_AGING_S:
            raise ConfigError(
                f"aging_s is {self.aging_s:g}; it must be in (0, {_MOST_AGING_S:g}] or None", field="aging_s"
            )
        for field in ("ttft_ms", "itl_ms"):
            check_target(field, getattr(self, field))
        if not 0.0 <= self.step_warmup_s <= _MOST_WARMUP_S:
            raise ConfigError(
                f"step_warmup_s is {self.step_warmup_s:g}; it must be in [0, {_MOST_WARMUP_S:g}]",
                field="step_warmup_s",
            )
        if self.hash_key is not None and not re.fullmatch(r"[0-9a-f]{32}", self.hash_key):
            raise ConfigError(f"hash_key is {self.hash_key!r}; it must be 32 digits of hex", field="hash_key")
        self._check_tiers()
        self._check_device()
        self._check_parallel()
        _check_names(self.models)

    def _check_device(self) -> None:
        """What can be told without looking for a device."""
        on_gpu = self.device.startswith("cuda")
        if on_gpu and self.backend not in ("auto", "cuda"):
            raise ConfigError(
                f"backend is {self.backend!r}; on the device {self.device!r} it must be 'auto' or 'cuda'",
                field="backend",
            )
        if self.device.startswith("cuda:") and self.tensor_parallel_size > 1:
            raise ConfigError(
                f"device is {self.device!r}; with tensor_parallel_size {self.tensor_parallel_size} it must be 'cuda', "
                "which is the first so many",
                field="device",
            )
        if self.backend in ("cpu", "reference") or (self.device == "cpu" and self.backend == "auto"):
            self.check_for_cpu("on CPUs")

    def _check_parallel(self) -> None:
        """What models on several GPUs cannot have."""
        if self.tensor_parallel_size == 1:
            return
        what = f"with tensor_parallel_size {self.tensor_parallel_size}"
        if self.host_kv_memory:
            raise ConfigError(
                f"host_kv_memory is {self.host_kv_memory}; {what} it must be 0", field="host_kv_memory"
            )
        for model in self.models:
            for field, without in (("kv_min", None), ("kv_max", None), ("sleepable", False)):
                value = getattr(model, field)
                if value != without:
                    raise ConfigError(
                        f"{field} of {model.name} is {value}; {what} it must be {without}", field=field
                    )

    def check_for_cpu(self, why: str) -> None:
        """Raises ConfigError for what only GPUs do; `why` says where the models run."""
        for field, default in (
            ("kv_cache_dtype", "auto"),
            ("quantization", None),
            ("tensor_parallel_size", 1),
        ):
            value = getattr(self, field)
            if value != default:
                raise ConfigError(f"{field} is {value!r}; {why} it must be {default!r}", field=field)

    def _check_tiers(self) -> None:
        if (self.disk_kv_path is None) != (self.disk_kv_memory == 0):
            raise ConfigError(
                f"disk_kv_path is {self.disk_kv_path} and disk_kv_memory is {self.disk_kv_memory}; give both or none",
                field="disk_kv_memory",
            )
        if self.disk_kv_memory and not self.host_kv_memory:
            raise ConfigError(
                "host_kv_memory is 0; the disk is reached through host memory, so disk_kv_path needs some",
                field="host_kv_memory",
            )
        if self.host_kv_memory and not self.prefix_caching:
            raise ConfigError(
                f"host_kv_memory is {self.host_kv_memory}; it must be 0 without prefix caching",
                field="host_kv_memory",
            )

    def settled(self, *, kv_fraction: float, block_size: int, max_batch_tokens: int) -> SettledOptions:
        """The same with these values where there was None."""
        given = {field.name: getattr(self, field.name) for field in fields(EngineOptions)}
        for field, value in (
            ("kv_fraction", kv_fraction),
            ("block_size", block_size),
            ("max_batch_tokens", max_batch_tokens),
        ):
            if given[field] is None:
                given[field] = value
        given["hash_key"] = given["hash_key"] or secrets.token_hex(16)
        return SettledOptions(**given)

    def targets(self, model: ModelOptions) -> list[tuple[int | None, int | None]]:
        """What requests to a model are promised, as the core takes it; empty: nothing."""
        ttft_ms = self.ttft_ms if model.ttft_ms is None else model.ttft_ms
        itl_ms = self.itl_ms if model.itl_ms is None else model.itl_ms
        return targets_by_band(ttft_ms, itl_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledOptions(EngineOptions):
    """Options in which nothing is left to the platform."""

    kv_fraction: float
    block_size: int
    max_batch_tokens: int
    hash_key: str


def _default_name(path: str) -> str:
    """What a model is called unless told otherwise."""
    if is_remote(path):
        return source_name(path)
    return os.path.basename(os.path.abspath(path)) or path


def _check_names(models: Sequence[ModelOptions]) -> None:
    seen: set[str] = set()
    for name in (name for model in models for name in (model.name, *model.aliases)):
        if name in seen:
            raise ConfigError(
                f"model name {name!r} is given twice; names and aliases must differ", field="name"
            )
        seen.add(name)


def _check_choice(field: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ConfigError(f"{field} is {value!r}; accepted: {', '.join(accepted)}", field=field)


def _check_whole(field: str, value: object) -> None:
    least, most = _BOUNDS[field]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{field} is {value!r}; it must be a whole number from {least} to {most}", field=field
        )
