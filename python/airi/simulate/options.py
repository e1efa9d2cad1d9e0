"""What a user may choose about a simulation. Every mistake is a ConfigError naming field and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from airi import _core
from airi.errors import ConfigError
from airi.sampling_params import MAX_PRIORITY
from airi.simulate.step_time import DEFAULT_PRESET, PRESETS, StepTime

__all__ = ["ADMISSIONS", "ROUTERS", "SimulationOptions"]

ROUTERS = ("round_robin", "least_loaded", "prefix")
ADMISSIONS = ("max_util", "no_evict")

_BOUNDS = {
    "replicas": (1, 4096),
    "block_size": (1, 2**20),
    "kv_blocks": (1, 2**31 - 1),
    "max_num_seqs": (1, 2**20),
    "max_batch_tokens": (1, 2**30),
    "max_model_len": (2, 2**30),
    "max_queued": (1, 2**62),
    "part_tokens": (1, 2**20),
    "concurrency": (1, 2**62),
    "steps_ahead": (0, 1),
    "threads": (1, 256),
}
_OPTIONAL = ("kv_blocks", "max_model_len", "concurrency", "threads")
_MOST_BLOCKS = 2**31 - 1
_MOST_LENGTH = 2**30
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """A fleet: replicas of one model, how they schedule, and the router before them."""

    replicas: int = 1
    block_size: int = 16
    """Tokens per KV block."""
    kv_blocks: int | None = None
    """Blocks per replica; None: as many as the preset's memory holds beside its weights."""
    router: str = "prefix"
    load_guard: float = 1.5
    """The prefix router looks at replicas with at most this many times the mean load, plus 4 requests."""
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
    """At most; None: the cores this process may use. Figures do not depend on it. Only a router that does not look at
    load lets replicas run side by side."""
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
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(
                    f"weight of tenant {tenant} is {weight:g}; it must be positive", field="tenant_weights"
                )

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
        return _made(_core.RuntimeConfig, settings | dict(self.runtime), "runtime")

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
        return _made(_core.ModelConfig, settings | dict(self.model), "model")


def _made(kind: type[_T], settings: Mapping[str, object], field_name: str) -> _T:
    try:
        return kind(**settings)
    except ValueError as error:
        raise ConfigError(str(error), field=field_name) from None
    except TypeError:
        # pybind11's own text goes over several lines and repeats every argument.
        raise ConfigError(
            f"the core's {kind.__name__} takes no such setting or type: {', '.join(settings)}",
            field=field_name,
        ) from None


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}", field=name)


def _check_whole(name: str, value: object) -> None:
    least, most = _BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number from {least} to {most}", field=name
        )
