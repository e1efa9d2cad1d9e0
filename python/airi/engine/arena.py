"""The KV arena: how large, cut into which slabs, and the memory itself."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import KV_GRANULE
from airi.errors import MemoryBudgetError

__all__ = [
    "ArenaPlan",
    "ElasticLimits",
    "KvDemand",
    "allocate_arena",
    "elastic_limits",
    "format_bytes",
    "plan_arena",
    "plan_elastic_arena",
    "release_pages",
]

# Slabs of several models: large enough that what a slab's last block leaves over is at most 1/8.
_MIN_SLAB_BYTES = 4 * 2**20
_BLOCKS_PER_SLAB = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDemand:
    """What one model could use of the arena."""

    name: str
    bytes_per_block: int
    """A multiple of the granule."""
    max_blocks: int
    """Blocks of all its slots at its full window: more would never be used."""
    share: float
    kv_min: int = 0
    """Bytes, where memory moves."""
    kv_max: int | None = None
    weight_bytes: int = 0
    """Of weights that lie in the arena."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaPlan:
    """Sizes of an arena. `arena_bytes` is a multiple of `slab_bytes`, that of the granule."""

    arena_bytes: int
    slab_bytes: int
    num_slabs: tuple[int, ...]
    """Per model, in order."""
    num_blocks: tuple[int, ...]
    """Per model, in order: what its requests can count on."""
    limits: tuple[ElasticLimits, ...] = ()
    """Per model, in order, where memory moves; then `num_slabs` says nothing."""

    def limits_of(self, index: int) -> ElasticLimits | None:
        """Those of a model; None where memory does not move."""
        return self.limits[index] if self.limits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticLimits:
    """Slabs of a model whose memory moves."""

    min_slabs: int
    max_slabs: int
    weight_slabs: int


def plan_arena(
    demands: Sequence[KvDemand], *, kv_memory: int | None, available: int, fraction: float
) -> ArenaPlan:
    """Divides `kv_memory` bytes, or `fraction` of `available`, among the models by their shares.

    What is found rather than given is cut to what the models could use. Raises MemoryBudgetError,
    naming the amounts, when a model would get no block or more is asked for than is there.
    """
    budget = _budget(kv_memory, available, fraction)
    slab_bytes = _slab_bytes(demands)
    if kv_memory is None:
        # Shares are fixed, so each model must be able to reach its demand within its own.
        total_share = sum(demand.share for demand in demands)
        per_slab = [slab_bytes // demand.bytes_per_block for demand in demands]
        wanted = max(
            -(-demand.max_blocks // blocks) * total_share / demand.share
            for demand, blocks in zip(demands, per_slab, strict=True)
        )
        budget = min(budget, int(wanted + len(demands)) * slab_bytes)
    total = budget // slab_bytes
    if total < len(demands):
        needed = len(demands) * slab_bytes
        source = "kv_memory is" if kv_memory is not None else f"{fraction:.0%} of the free memory is"
        raise MemoryBudgetError(
            f"{source} {format_bytes(budget)}; {len(demands)} model(s) need at least {format_bytes(needed)} "
            f"({format_bytes(slab_bytes)} each)",
            field="kv_memory",
        )
    num_slabs = _apportion(total, [demand.share for demand in demands])
    blocks = (
        n * (slab_bytes // demand.bytes_per_block) for n, demand in zip(num_slabs, demands, strict=True)
    )
    return ArenaPlan(
        arena_bytes=total * slab_bytes,
        slab_bytes=slab_bytes,
        num_slabs=tuple(num_slabs),
        num_blocks=tuple(blocks),
    )


def plan_elastic_arena(
    demands: Sequence[KvDemand], *, kv_memory: int | None, available: int, fraction: float
) -> ArenaPlan:
    """As `plan_arena`, for memory that moves between the models; weights in the arena come on top."""
    slab_bytes = max(_slab_bytes(demands), _MIN_SLAB_BYTES)
    budget = _budget(kv_memory, available, fraction)
    total = budget // slab_bytes
    if kv_memory is None:
        # A model keeps its kv_min also where that is more than it could use.
        wanted = sum(
            max(-(-d.max_blocks // (slab_bytes // d.bytes_per_block)), -(-d.kv_min // slab_bytes))
            for d in demands
        )
        total = min(total, wanted + len(demands))
    limits = [elastic_limits(demand, slab_bytes, total) for demand in demands]
    spare = total - sum(limit.min_slabs for limit in limits)
    if spare < 0 or total < len(demands):
        needed = max(sum(limit.min_slabs for limit in limits), len(demands)) * slab_bytes
        raise MemoryBudgetError(
            f"{format_bytes(budget)} of KV memory do not hold what kv_min of {len(demands)} model(s) asks for, "
            f"{format_bytes(needed)}",
            field="kv_memory",
        )
    weight = sum(demand.share for demand in demands)
    slabs = [
        min(limit.max_slabs, limit.min_slabs + int(spare * demand.share / weight))
        for limit, demand in zip(limits, demands, strict=True)
    ]
    blocks = [n * (slab_bytes // demand.bytes_per_block) for n, demand in zip(slabs, demands, strict=True)]
    return ArenaPlan(
        arena_bytes=(total + sum(limit.weight_slabs for limit in limits)) * slab_bytes,
        slab_bytes=slab_bytes,
        num_slabs=tuple(slabs),
        num_blocks=tuple(blocks),
        limits=tuple(limits),
    )


def elastic_limits(demand: KvDemand, slab_bytes: int, total: int) -> ElasticLimits:
    """Bytes in slabs, of `total` for KV; raises MemoryBudgetError for a `kv_min` or `kv_max` that cannot be."""
    low = -(-demand.kv_min // slab_bytes)
    if low > total:
        raise MemoryBudgetError(
            f"kv_min of {demand.name} is {format_bytes(demand.kv_min)}; the memory for keys and values of all models "
            f"is {format_bytes(total * slab_bytes)}",
            field="kv_min",
        )
    high = total if demand.kv_max is None else min(total, demand.kv_max // slab_bytes)
    if demand.kv_max is not None and demand.kv_max < max(low, 1) * slab_bytes:
        raise MemoryBudgetError(
            f"kv_max of {demand.name} is {format_bytes(demand.kv_max)}; memory moves in slabs of "
            f"{format_bytes(slab_bytes)}, and it must hold {max(low, 1)} of them",
            field="kv_max",
        )
    return ElasticLimits(
        min_slabs=low, max_slabs=max(high, low, 1), weight_slabs=-(-demand.weight_bytes // slab_bytes)
    )


def _budget(kv_memory: int | None, available: int, fraction: float) -> int:
    if kv_memory is None:
        return int(available * fraction)
    if kv_memory > available:
        raise MemoryBudgetError(
            f"kv_memory is {format_bytes(kv_memory)}, but only {format_bytes(available)} is free after "
            "loading the weights",
            field="kv_memory",
        )
    return kv_memory


def _slab_bytes(demands: Sequence[KvDemand]) -> int:
    """One model: a slab is a block, nothing is left over. Several: eight of the largest, at least 4 MiB."""
    largest = max(demand.bytes_per_block for demand in demands)
    if len(demands) == 1:
        return largest
    size = max(_MIN_SLAB_BYTES, _BLOCKS_PER_SLAB * largest)
    return -(-size // KV_GRANULE) * KV_GRANULE


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` slabs in proportion to `shares`, at least one each, by largest remainder."""
    spare = total - len(shares)
    exact = [spare * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: spare - sum(counts)]:
        counts[i] += 1
    return [count + 1 for count in counts]


def allocate_arena(num_bytes: int) -> NDArray[np.uint8]:
    """`num_bytes` of zeroed memory, page-aligned; the system commits a page when it is first written."""
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryBudgetError(
            f"the KV arena of {format_bytes(num_bytes)} cannot be allocated: {error.strerror}",
            field="kv_memory",
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a hint: kernels without transparent huge pages refuse it
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def release_pages(arena: NDArray[np.uint8]) -> None:
    """Gives the memory of `allocate_arena` back to the system until it is written again; it is zeros then."""
    held = arena.base
    if isinstance(held, memoryview) and isinstance(held.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        held.obj.madvise(mmap.MADV_DONTNEED)


def format_bytes(count: int) -> str:
    """A byte count for people: "1.5 GiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
