"""What this process may use of the machine: memory and cores, container limits included."""

from __future__ import annotations

import math
import os
from pathlib import Path

from airi.errors import MemoryBudgetError

__all__ = ["available_memory", "usable_cores"]


def available_memory() -> int:
    """Bytes this process may still take: free memory, or what its control group leaves, if less."""
    limits = [_meminfo_available()]
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        ceiling, used = _read_int(f"{folder}/{limit}"), _read_int(f"{folder}/{usage}")
        if ceiling is not None and used is not None:
            limits.append(max(0, ceiling - used + _page_cache(f"{folder}/memory.stat")))
    return min(limits)


def _page_cache(path: str) -> int:
    """Bytes of cached files that a control group counts as used but gives up when asked for memory."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MemoryBudgetError("/proc/meminfo names no MemAvailable; give kv_memory", field="kv_memory")


def _read_int(path: str) -> int | None:
    """A number in a file, or None: no such file, or "max"."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    """Cores this process may run on, or what its control group's quota comes to, if less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota_v2("/sys/fs/cgroup/cpu.max") or _quota_v1("/sys/fs/cgroup/cpu")
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota_v2(path: str) -> float | None:
    """Cores' worth of time per period, from "QUOTA PERIOD"; None for "max" or no such file."""
    try:
        quota, period = Path(path).read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: str) -> float | None:
    quota, period = _read_int(f"{folder}/cpu.cfs_quota_us"), _read_int(f"{folder}/cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None
