"""What a user may choose about a simulation. Every mistake is a ConfigError naming field and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from airi import _core
from airi.errors import ConfigError
from airi.sampling_params import MAX_PRIORITY
from airi.simulate.settings import made_model, made_runtime
from airi.simulate.step_time import DEFAULT_PRESET, PRESETS, StepTime

__all__ = ["ADMISSIONS", "ROUTERS", "SimulationOptions"]

ROUTERS = ("round_robin", "least_loaded", "prefix", "locality")
ADMISSIONS = ("max_util", "no_evict")

_BOUNDS = {
    "replicas": (1, 4096),
    "block_size": (1, 2**20),
    "kv_blocks": (1, 2**31 - 1),
    "host_kv_blocks": (0, 2**31 - 1),
    "disk_kv_blocks": (0, 2**31 - 1),
    "kv_bytes_per_token": (1, 2**30),
    "max_num_seqs": (1, 2**20),
    "max_batch_tokens": (1, 2**24),
    "max_model_len": (2, 2**30),
    "max_queued": (1, 2**62),
    "part_tokens": (1, 2**20),
    "concurrency": (1, 2**62),
    "steps_ahead": (0, 1),
    "threads": (1, 256),
}
_OPTIONAL = ("kv_blocks", "kv_bytes_per_token", "max_model_len", "concurrency", "threads")
_MOST_BLOCKS = 2**31 - 1
_MOST_LENGTH = 2**30
_MOST_TENANT = 2**63 - 1
_MOST_RATE = 1e9
"""Bytes per microsecond that the core takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """A fleet: replicas of one model, how they schedule, and the router before them."""

    replicas: int = 1
    block_size: int = 16
    """Tokens per KV block."""
    kv_blocks: int | None = None
    """Blocks per replica; None: as many as the preset's memory holds beside its weights."""
    host_kv_blocks: int = 0
    """KV blocks that the host memory beside a replica holds: copies of what leaves the device."""
    disk_kv_blocks: int = 0
    """The same on a disk, behind host memory."""
    # PCIe 5.0 x16 moves 63 GB/s each way by its specification; large copies reach about four fifths.
    host_kv_gb_per_s: float = 50.0
    """Between device and host, each way, in 10^9 bytes a second."""
    # What data sheets of NVMe drives with PCIe 4.0 x4 promise, about 7 GB/s of large reads, less a little.
    disk_kv_gb_per_s: float = 6.0
    """Between host and disk, each way."""
    kv_bytes_per_token: int | None = None
    """Of all layers; None: what the preset's model has. Only the time of copies depends on it."""
    router: str = "prefix"
    load_guard: float = 1.5
    """The prefix router looks at replicas with at most this many times the mean load, plus 4 requests; the locality
    router at those with at most this many times the mean outstanding work, plus the
    request's own where that is the most."""
    step_time: StepTime | str = DEFAULT_PRESET
    """A preset's name, or what was measured."""
    max_num_seqs: int = 256
    max_batch_tokens: int = 2048
    max_model_len: int | None = None
    """None: what the KV memory of a replica holds."""
    max_queued: int = 2**31
    """Per replica. A server refuses beyond some thousands; a simulation shows how long the queue gets."""
    admission: str = "max_util"
    prefix_caching: bool = True
    aging_s: float | None = 30.0
    steps_ahead: int = 1
    """1: a step is planned when the one before it starts. 0: when that one has ended."""
    part_tokens: int = 512
    """Tokens of one of a trace's `hash_ids`."""
    concurrency: int | None = None
    """Requests in the fleet at most: further ones arrive when one ends, and their times count from then."""
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tenant_weights: Mapping[int, float] = field(default_factory=dict)
    threads: int | None = None
    """At most; None: the cores this process may use. Figures do not depend on it. Under a router that looks at load
    threads meet at every arrival, which pays while each has a core; one that waits long for the others goes on alone
    for a while. With `concurrency` replicas run one after the other."""
    keep_rows: bool = False
    """Whether `Simulation.take_rows` has something to give."""
    runtime: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of the core's RuntimeConfig, and of its ModelConfig."""
    model: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_whole(name, value)
        _check_choice("router", self.router, ROUTERS)
        _check_choice("admission", self.admission, ADMISSIONS)
        if isinstance(self.step_time, str):
            _check_choice("step_time", self.step_time, tuple(PRESETS))
        if not 1 <= self.load_guard <= 1e9:
            raise ConfigError(f"load_guard is {self.load_guard:g}; it must be at least 1", field="load_guard")
        for name in ("ttft_ms", "itl_ms", "aging_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1e9:
                raise ConfigError(f"{name} is {value:g}; it must be in (0, 1e9]", field=name)
        self._check_tiers()
        for tenant, weight in self.tenant_weights.items():
            if not -_MOST_TENANT <= tenant <= _MOST_TENANT:
                raise ConfigError(
                    f"tenant {tenant} has a weight; it must be a whole number of 64 bits with a sign",
                    field="tenant_weights",
                )
            if not 0 < weight < math.inf:
                raise ConfigError(
                    f"weight of tenant {tenant} is {weight:g}; it must be positive", field="tenant_weights"
                )

    def _check_tiers(self) -> None:
        for name in ("host_kv_gb_per_s", "disk_kv_gb_per_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
                raise ConfigError(f"{name} is {value!r}; it must be a number in (0, 1e6]", field=name)
        if self.disk_kv_blocks and not self.host_kv_blocks:
            raise ConfigError(
                "host_kv_blocks is 0; the disk is reached through host memory, so disk_kv_blocks needs some",
                field="host_kv_blocks",
            )
        if not self.host_kv_blocks:
            return
        if not self.model.get("enable_prefix_caching", self.prefix_caching):
            raise ConfigError(
                f"host_kv_blocks is {self.host_kv_blocks}; it must be 0 without prefix caching",
                field="host_kv_blocks",
            )
        blocks = self.blocks + self.host_kv_blocks + self.disk_kv_blocks
        if blocks > _MOST_BLOCKS:
            raise ConfigError(
                f"host_kv_blocks is {self.host_kv_blocks}; with those of device and disk it makes {blocks}, "
                f"and must make {_MOST_BLOCKS} at most",
                field="host_kv_blocks",
            )
        if self.kv_bytes_per_token is None and not isinstance(self.step_time, str):
            raise ConfigError(
                "kv_bytes_per_token must be given with host_kv_blocks where the step time is no preset",
                field="kv_bytes_per_token",
            )

    @property
    def has_tiers(self) -> bool:
        """Whether blocks have copies beside the device."""
        return self.host_kv_blocks > 0

    def _tiers(self) -> dict[str, object]:
        """Tiers as the core takes them. There a block is a granule, and copies are as much faster."""
        if not self.has_tiers:
            return {}
        per_token = self.kv_bytes_per_token
        if per_token is None:
            per_token = PRESETS[str(self.step_time)].kv_bytes_per_token
        scale = 1e3 * _core.GRANULE_BYTES / (per_token * self.block_size)
        return {
            "host_bytes": self.host_kv_blocks * _core.GRANULE_BYTES,
            "disk_bytes": self.disk_kv_blocks * _core.GRANULE_BYTES,
            "host_bytes_per_us": min(self.host_kv_gb_per_s * scale, _MOST_RATE),
            "disk_bytes_per_us": min(self.disk_kv_gb_per_s * scale, _MOST_RATE),
        }

    @property
    def blocks(self) -> int:
        """KV blocks of a replica."""
        if self.kv_blocks is not None:
            return self.kv_blocks
        tokens = PRESETS[self.step_time if isinstance(self.step_time, str) else DEFAULT_PRESET].kv_tokens
        return min(max(tokens // self.block_size, 1), _MOST_BLOCKS)

    @property
    def times(self) -> StepTime:
        """How long steps take."""
        return PRESETS[self.step_time].step_time if isinstance(self.step_time, str) else self.step_time

    def runtime_config(self) -> _core.RuntimeConfig:
        """What every replica's runtime is made with; raises ConfigError."""
        settings: dict[str, object] = {
            "arena_bytes": self.blocks * _core.GRANULE_BYTES,
            "slab_bytes": self.blocks * _core.GRANULE_BYTES,
            "hash_key": bytes(16),
            "max_queued": self.max_queued,
            "num_bands": 2 * MAX_PRIORITY + 1,
            "aging_us": None if self.aging_s is None else int(self.aging_s * 1e6),
            "steps_ahead": self.steps_ahead,
        }
        return made_runtime(settings | self._tiers(), self.runtime)

    def model_config(self) -> _core.ModelConfig:
        """The one model of every replica; raises ConfigError."""
        admission = _core.Admission.NO_EVICT if self.admission == "no_evict" else _core.Admission.MAX_UTIL
        room = min(self.blocks * self.block_size, _MOST_LENGTH)
        settings: dict[str, object] = {
            "block_size": self.block_size,
            "bytes_per_block": _core.GRANULE_BYTES,
            "max_model_len": max(self.max_model_len or room, 2),
            "max_num_seqs": self.max_num_seqs,
            "max_batch_tokens": self.max_batch_tokens,
            "admission": admission,
            "enable_prefix_caching": self.prefix_caching,
        }
        return made_model(settings, self.model)


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}", field=name)


def _check_whole(name: str, value: object) -> None:
    least, most = _BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number from {least} to {most}", field=name
        )
