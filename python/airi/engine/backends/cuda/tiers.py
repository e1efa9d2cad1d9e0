"""Host memory and a disk file beside a device's KV arena."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.device import Device, Event
from airi.engine.tiers import Op, TierFiles, open_disk, whole_granules

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceTiers", "ranges_to_zero"]

_GRANULE = _core.GRANULE_BYTES
_Kind = _core.MemoryOpKind


class DeviceTiers(TierFiles):
    """Copies blocks between a device's arena, pinned host memory and the disk.

    Stores and zeroes are enqueued before the batch that overwrites what they copy, in the stream of the steps; loads
    in the second stream, behind what was enqueued in the first so far, so that no step waits for them. A thread for
    each of them waits for their ends, and tells.
    *Thread safety*: `begin` is called from one thread, inside `Device.active()`, `wait` from any.
    """

    def __init__(
        self,
        device: Device,
        arena: DeviceArena,
        *,
        host_bytes: int,
        disk_folder: str | None = None,
        disk_bytes: int = 0,
    ) -> None:
        """Takes the memory and the space; raises RuntimeError where it cannot be pinned, or ConfigError."""
        self._device = device
        self._arena = arena
        self._pinned = device.pinned(whole_granules(host_bytes))
        super().__init__(self._pinned.numpy(), open_disk(disk_folder, disk_bytes))
        self._stores = ThreadPoolExecutor(1, thread_name_prefix="airi-kv-store")
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="airi-kv-load")

    def begin(self, ops: NDArray[np.int64]) -> None:
        """Begins operations [n, 5] in their order; those with an id are reported when they have ended."""
        rows: list[Op] = [tuple(row) for row in ops.tolist()]
        stores = [row for row in rows if row[0] in (_Kind.STORE, _Kind.ZERO)]
        loads = [row for row in rows if row[0] == _Kind.LOAD]
        if stores:
            self._enqueue(stores, self._stores)
        if loads:
            before = self._device.record()
            with self._device.aside():
                self._device.wait(before)
                self._enqueue(loads, self._loads)
        self._begin_files(rows)

    def close(self) -> None:
        """As `TierFiles.close`."""
        for pool in (self._stores, self._loads):
            pool.shutdown(wait=True, cancel_futures=True)
        super().close()

    def _enqueue(self, rows: Sequence[Op], pool: ThreadPoolExecutor) -> None:
        began = self._device.record()
        went_well = [self._attempt(kind, source, to, granules) for kind, _, source, to, granules in rows]
        ended = self._device.record()
        pool.submit(self._finish, rows, went_well, began, ended)

    def _finish(self, rows: Sequence[Op], went_well: Sequence[bool], began: Event, ended: Event) -> None:
        """Tells of transfers that were enqueued together; each took its part of the time by its size."""
        took = 0.0
        try:
            ended.synchronize()
            took = ended.micros_since(began)
        except Exception as error:
            # Else who waits for a transfer would do so for ever, and never take the step that learns of the device.
            self._say(f"copies of KV did not end: {error}")
            went_well = [False] * len(rows)
        micros = took / sum(row[4] for row in rows)
        self._tell(
            [
                (transfer, ok, round(micros * granules))
                for (_, transfer, _, _, granules), ok in zip(rows, went_well, strict=True)
                if transfer >= 0
            ]
        )

    def _execute(self, kind: int, source: int, to: int, granules: int) -> None:
        if kind == _Kind.ZERO:
            _part(self._arena.memory, source, granules).zero_()
        elif kind == _Kind.STORE:
            host, block = _part(self._pinned, to, granules), _part(self._arena.memory, source, granules)
            host.copy_(block, non_blocking=True)
        elif kind == _Kind.LOAD:
            host, block = _part(self._pinned, source, granules), _part(self._arena.memory, to, granules)
            block.copy_(host, non_blocking=True)
        else:
            super()._execute(kind, source, to, granules)


def ranges_to_zero(ops: NDArray[np.int64]) -> NDArray[np.int32]:
    """[n, 2] (first granule, how many) of the memory operations [n, 5] of a step without tiers."""
    for kind in ops[ops[:, 0] != _Kind.ZERO, 0].tolist():
        raise ValueError(f"memory operation {kind} is not one of this device")
    return ops[:, [2, 4]].astype(np.int32)


def _part(memory: torch.Tensor, granule: int, count: int) -> torch.Tensor:
    return memory[granule * _GRANULE : (granule + count) * _GRANULE]
