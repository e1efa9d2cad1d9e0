"""The options of several engines on one machine, from those of one."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from airi.engine.backends.cuda.detect import has_driver
from airi.engine.options import EngineOptions
from airi.engine.resources import usable_cores
from airi.errors import ConfigError

__all__ = ["MAX_REPLICAS", "replica_options"]

MAX_REPLICAS = 64
"""As many as the core's router tells apart."""
_HOST_FRACTION = 0.5
"""Of free memory that engines on CPUs take unless told otherwise."""


def replica_options(options: EngineOptions, count: int) -> tuple[EngineOptions, ...]:
    """Options of `count` engines with the same models. One is as it was.

    On CPUs they share `threads` and `kv_memory`, or what those are when left out; on GPUs each has its own GPU, from
    the first one on, and as much of it. What they have of host memory and of a disk is divided in any case. All
    hash prefixes alike. Raises ConfigError for what cannot be divided.
    """
    if not 1 <= count <= MAX_REPLICAS:
        raise ConfigError(f"replicas is {count}; accepted: from 1 to {MAX_REPLICAS}", field="replicas")
    if count == 1:
        return (options,)
    on_gpus = _on_gpus(options, count)
    shared = replace(
        options,
        hash_key=options.hash_key or secrets.token_hex(16),
        host_kv_memory=_part("host_kv_memory", options.host_kv_memory, count),
        disk_kv_memory=_part("disk_kv_memory", options.disk_kv_memory, count),
    )
    if not on_gpus:
        memory, fraction = options.kv_memory, options.kv_fraction or _HOST_FRACTION
        shared = replace(
            shared,
            threads=max(1, (options.threads or usable_cores()) // count),
            kv_memory=None if memory is None else _part("kv_memory", memory, count),
            kv_fraction=fraction / count,
        )
    return tuple(
        replace(
            shared,
            device=f"cuda:{i}" if on_gpus else shared.device,
            record_steps=None if options.record_steps is None else f"{options.record_steps}.{i}",
            disk_kv_path=None if options.disk_kv_path is None else os.path.join(options.disk_kv_path, str(i)),
        )
        for i in range(count)
    )


def _on_gpus(options: EngineOptions, count: int) -> bool:
    if options.device == "cpu" or (options.device == "auto" and not has_driver()):
        return False
    if options.device == "auto":
        from airi.engine.backends.cuda.detect import obstacle

        if obstacle(0) is not None:
            return False
    if options.tensor_parallel_size > 1:
        raise ConfigError(
            f"replicas is {count}; with tensor_parallel_size {options.tensor_parallel_size} it must be 1",
            field="replicas",
        )
    if options.device not in ("auto", "cuda"):
        raise ConfigError(
            f"device is {options.device!r}; with replicas {count} it must be 'cuda', which is the first so many, "
            "'auto' or 'cpu'",
            field="device",
        )
    return True


def _part(field: str, size: int, count: int) -> int:
    """An equal part of so many bytes."""
    if size and size < count:
        raise ConfigError(f"{field} is {size}; {count} replicas share it and need more", field=field)
    return size // count
