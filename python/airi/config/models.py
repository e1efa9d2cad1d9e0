"""`models` and `engine`: what is served, and what runs it. Settings have vLLM's names where vLLM has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from airi._sources import SOURCES, is_remote, is_well_formed
from airi.config.accelerators import ACCELERATORS, ANY, CPU, is_known
from airi.config.upstreams import Upstream
from airi.config.values import Bytes, FilePath, Name, Part, PositiveNumber, Whole, accepts, mistaken

if TYPE_CHECKING:
    from airi.lifecycle import Version as RegisteredVersion

__all__ = [
    "Engine",
    "EngineSettings",
    "KvMemory",
    "Model",
    "Price",
    "Resources",
    "Slo",
    "Target",
    "Version",
]


def _check_accelerator(name: str) -> str:
    if not is_known(name):
        raise mistaken(f"{ANY}, {CPU}, {', '.join(ACCELERATORS)}")
    return name


def _check_source(source: str) -> str:
    remote = is_remote(source) or "://" in source
    if not source.strip() or "\0" in source or (remote and not is_well_formed(source)):
        raise mistaken(_SOURCES)
    return source


def _check_multiple(value: int) -> int:
    if value % 8:
        raise mistaken("a multiple of 8 up to 256")
    return value


_SOURCES = f"{SOURCES}, or airi-demo"
Source = Annotated[str, Field(max_length=4096), accepts(_SOURCES), AfterValidator(_check_source)]
Accelerator = Annotated[str, Field(max_length=64), AfterValidator(_check_accelerator)]
BlockSize = Annotated[int, Whole(8, 256), AfterValidator(_check_multiple)]


class EngineSettings(Part):
    """How a model runs. Apart from dtype and max_model_len, models on one device share these."""

    foreign: ClassVar[dict[str, str]] = {
        "gpu_memory_utilization": "kv_memory",
        "swap_space": "host_kv_memory",
        "cpu_offload_gb": "host_kv_memory",
        "max_batch_tokens": "max_num_batched_tokens",
        "prefix_caching": "enable_prefix_caching",
        "enable_sleep_mode": "resources.sleepable",
        "scheduling_policy": "schedule_policy",
    }

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """What a model computes in; auto is the checkpoint's own."""
    max_model_len: Annotated[int, Whole(2, 2**30)] | None = None
    """Prompt and answer together, in tokens; left out: the model's window."""
    max_num_seqs: Annotated[int, Whole(1, 2**20)] | None = None
    """Requests of one model that run at the same time; 256 unless set."""
    max_num_batched_tokens: Annotated[int, Whole(1, 2**30)] | None = None
    """Tokens in one step, prompts and answers together; left out: 512 on CPUs, 2048 on GPUs."""
    enable_prefix_caching: bool | None = None
    """Keep what prompts began with for those that begin alike; true unless set."""
    block_size: BlockSize | None = None
    """Tokens per KV block, a multiple of 8; left out: 16 on CPUs, 64 on GPUs."""
    kv_cache_dtype: Literal["auto", "fp8", "int8"] | None = None
    """What keys and values are stored as on a GPU; auto, the dtype, unless set."""
    quantization: Literal["fp8", "int8"] | None = None
    """What weights are quantised to on a GPU; left out: nothing."""
    tensor_parallel_size: Annotated[int, Whole(1, 64)] | None = None
    """How many GPUs share a model; 1 unless set."""
    async_scheduling: bool | None = None
    """Plan each step while the one before it runs; true unless set."""
    seed: Annotated[int, Whole(0, 2**63 - 1)] | None = None
    """Fixes the seeds of requests that bring none."""


class Engine(EngineSettings):
    """The engine that all models run in: its device, its memory, its queue."""

    foreign: ClassVar[dict[str, str]] = EngineSettings.foreign | {
        "data_parallel_size": "replicas",
        "num_replicas": "replicas",
    }

    replicas: Annotated[int, Whole(1, 64)] = 1
    """Engine processes with the same models, among which requests are divided. On CPUs they share threads and
    kv_memory; on GPUs each has one of its own, with kv_memory each."""
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"), accepts("auto, cpu, cuda or cuda:N")
    ] = "auto"
    """Where to run: cpu, cuda (a GPU, ROCm's too), cuda:N, or auto: a GPU where there is one."""
    threads: Annotated[int, Whole(1, 1024)] | None = None
    """Threads that compute; left out: all cores."""
    kv_memory: Bytes | None = None
    """Memory for keys and values of all models; left out: half of what is free, on a GPU 85 %."""
    host_kv_memory: Bytes | None = None
    """Memory for copies of keys and values that leave kv_memory; left out: none."""
    disk_kv_path: FilePath | None = None
    """Folder for what leaves host_kv_memory in turn, on a fast disk."""
    disk_kv_memory: Bytes | None = None
    """How much of that disk to take."""
    max_queued: Annotated[int, Whole(1, 2**30)] = 4096
    """Requests that may wait; more get status 429."""
    admission: Literal["max_util", "no_evict"] = "max_util"
    """max_util starts a request when its next step fits, no_evict when all of it fits."""
    schedule_policy: Literal["lpm", "fcfs"] = "lpm"
    """Who of the waiting goes first: whose prompt has the longest cached prefix, or who came first."""
    locality_quantum_tokens: Annotated[int, Whole(1, 2**40)] = 4096
    """With lpm: how far, in tokens, a tenant may be served ahead of others for its cached prefixes."""
    fairness_gap_tokens: Annotated[int, Whole(1, 2**40)] | None = None
    """How far, in tokens, a waiting tenant may fall behind another before a request of that one makes way."""
    dedupe_steps: Annotated[int, Whole(0, 2**20)] = 128
    """Steps that a prompt may wait for a prefix which another is just computing."""
    aging_s: Annotated[float, Field(gt=0, le=1e9)] = 30.0
    """Seconds of waiting after which a request counts as one priority higher."""
    step_warmup_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    """Seconds, about, to measure steps at the start where something is promised."""
    isolate_tenants: bool = False
    """Tenants share no cached prefixes, so that none learns what others have sent."""
    decision_records: Annotated[int, Whole(0, 2**24)] = 1 << 14
    """Decisions about requests that are kept, to say why one waited."""
    record_steps: FilePath | None = None
    """File for everything that the scheduler is told, for `airi simulate --replay`."""


class KvMemory(Part):
    """Memory for keys and values moves between models; each has its bounds."""

    min: Bytes | None = None
    """What it has whenever it needs it."""
    max: Bytes | None = None
    """What it has at most."""


class Resources(Part):
    """A model's part of the device."""

    accelerator: tuple[Accelerator, ...] = Field(default=(), strict=False)
    """Devices that it may be placed on, by name; `airi check` says whether it fits on them."""
    share: PositiveNumber = 1.0
    """Weight of its share of device time against other models that have work."""
    kv_share: PositiveNumber = 1.0
    """Weight of its share of memory for keys and values against other models."""
    kv_memory: KvMemory = KvMemory()
    """Bounds of its memory for keys and values."""
    sleepable: bool = False
    """Whether it can be sent to sleep, which lends the memory of its weights to the others."""


class Target(Part):
    """What is promised, in milliseconds."""

    p99: PositiveNumber
    """For 99 of 100."""


class Slo(Part):
    """What requests to a model are promised."""

    later: ClassVar[tuple[str, ...]] = ("latency_ms",)

    ttft_ms: Target | None = None
    """From the arrival of a request to its first token."""
    itl_ms: Target | None = None
    """From one token of a stream to the next."""


class Price(Part):
    """What tokens cost, in the currency of budgets."""

    input_per_1m: Annotated[float, Field(ge=0, lt=1e9)] = 0.0
    """A million tokens of prompts."""
    output_per_1m: Annotated[float, Field(ge=0, lt=1e9)] = 0.0
    """A million tokens of answers."""


class Version(Part):
    """One version of a model."""

    id: Name
    """What it is called among the model's versions."""
    source: Source
    """A folder, hf://org/name[@revision], oci://registry/name[:tag], models:/name/version, or AIRI's own airi-demo."""
    compatible_with: Mapping[Name, Annotated[tuple[Name, ...], Field(strict=False)]] = Field(
        default_factory=dict
    )
    """By model, the versions that it was made for; models that are not named fit."""
    dimensions: Annotated[int, Whole(1, 2**20)] | None = None
    """Of an embedder's vectors; releases hold embedders of the same."""

    def known_as(self, model: str, *, digest: str) -> RegisteredVersion:
        """As the registry of versions has it."""
        from airi.lifecycle import Facts
        from airi.lifecycle import Version as RegisteredVersion

        facts = Facts(dimensions=self.dimensions, compatible_with=dict(self.compatible_with))
        return RegisteredVersion(model=model, id=self.id, source=self.source, digest=digest, facts=facts)


class Model(Part):
    """A model that is served."""

    later: ClassVar[tuple[str, ...]] = ("autoscaling", "base")
    foreign: ClassVar[dict[str, str]] = {
        "path": "source",
        "model": "source",
        "model_name": "name",
        "served_model_name": "aliases",
        "slos": "slo",
        "pricing": "price",
    }

    name: Name
    """What requests call it."""
    task: Literal["chat", "embed", "classify"] = "chat"
    """What it does: it generates text, gives texts vectors, or scores texts as rerankers and classifiers do."""
    source: Source | None = None
    """A folder, hf://org/name[@revision], oci://registry/name[:tag], models:/name/version, or AIRI's own airi-demo."""
    versions: tuple[Version, ...] = Field(default=(), strict=False)
    """In place of source: the model's versions, the first of which is the first to serve."""
    upstream: Upstream | None = None
    """In place of source: another server that runs it."""
    aliases: tuple[Name, ...] = Field(default=(), strict=False)
    """Further names that requests may call it."""
    chat_template: FilePath | None = None
    """File that replaces the chat template of its tokenizer; the same for all models."""
    engine: EngineSettings = EngineSettings()
    """How it runs."""
    resources: Resources = Resources()
    """Its part of the device."""
    slo: Slo = Slo()
    """What its requests are promised."""
    price: Price | None = None
    """What its tokens cost."""

    @property
    def location(self) -> str:
        """Where it comes from, however that was said."""
        return self.source or (self.versions[0].source if self.versions else "")
