"""Settings of the core that a simulation hands on, and which of them it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from airi import _core
from airi.errors import ConfigError

__all__ = ["made_model", "made_runtime"]

_T = TypeVar("_T")

_ONE_MODEL = "a replica has one model, which has all of its KV memory"
_UNUSABLE = {
    **dict.fromkeys(
        ("num_slabs", "share", "min_slabs", "max_slabs", "slab_weight", "weight_slabs", "slab_hysteresis_us"),
        _ONE_MODEL,
    ),
    **dict.fromkeys(
        ("device_weight", "quantum_us", "min_residency_us"),
        "a replica has one model, whose step is always next",
    ),
    **dict.fromkeys(("arena_bytes", "slab_bytes", "bytes_per_block"), "give kv_blocks"),
    "host_bytes": "give host_kv_blocks",
    "disk_bytes": "give disk_kv_blocks",
    "host_bytes_per_us": "give host_kv_gb_per_s",
    "disk_bytes_per_us": "give disk_kv_gb_per_s",
    "num_bands": "it has one for each priority",
    **dict.fromkeys(("hash_key", "hash_seed"), "figures do not depend on it"),
    **dict.fromkeys(("decision_records", "kv_event_records"), "nobody reads them"),
    **dict.fromkeys(("block_size", "max_num_seqs", "max_batch_tokens", "max_queued", "admission"), ""),
}
"""Why not; empty: it has an option of its name."""


def made_runtime(base: Mapping[str, object], given: Mapping[str, object]) -> _core.RuntimeConfig:
    """The config of `base` and what a user has `given`; raises ConfigError."""
    return _made(_core.RuntimeConfig, base, given, "runtime")


def made_model(base: Mapping[str, object], given: Mapping[str, object]) -> _core.ModelConfig:
    """The same of a model."""
    return _made(_core.ModelConfig, base, given, "model")


def _made(kind: type[_T], base: Mapping[str, object], given: Mapping[str, object], field: str) -> _T:
    for name in given:
        if name not in _UNUSABLE:
            continue
        why = _UNUSABLE[name] or f"give {name} itself"
        raise ConfigError(f"a simulation takes no setting {name}: {why}", field=field)
    try:
        return kind(**{**base, **given})
    except ValueError as error:
        raise ConfigError(str(error), field=field) from None
    except TypeError:
        # pybind11's own text goes over several lines and repeats every argument.
        refused = [name for name, value in given.items() if _is_refused(kind, base, name, value)]
        if not refused:
            raise
        name = refused[0]
        raise ConfigError(
            f"{name} is {given[name]!r}; {kind.__name__} takes no such setting or type", field=field
        ) from None


def _is_refused(kind: type[_T], base: Mapping[str, object], name: str, value: object) -> bool:
    try:
        kind(**{**base, name: value})
    except TypeError:
        return True
    except ValueError:
        return False
    return False
