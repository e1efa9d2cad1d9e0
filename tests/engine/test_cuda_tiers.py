"""What is told of copies between a device and the host, also where the device is lost meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pytest
import torch

from airi import _core
from airi._core import MemoryOpKind
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.device import CpuDevice, Event
from airi.engine.backends.cuda.tiers import DeviceTiers

GRANULE = _core.GRANULE_BYTES
Told = tuple[list[int], list[bool], list[int]]


class TimedEvent:
    """Is reached at once, at a time of the device, unless that has failed by then."""

    def __init__(self, at_us: float, error: Exception | None) -> None:
        self.at_us, self.error = at_us, error

    def synchronize(self) -> None:
        if self.error is not None:
            raise self.error

    def is_done(self) -> bool:
        return True

    def micros_since(self, earlier: Event) -> float:
        return self.at_us - cast(TimedEvent, earlier).at_us


class TimedDevice(CpuDevice):
    """Between two events it takes 600 microseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0.0
        self.error: Exception | None = None

    def record(self) -> TimedEvent:
        self.now_us += 600.0
        return TimedEvent(self.now_us, self.error)


@pytest.fixture
def device() -> TimedDevice:
    return TimedDevice()


@pytest.fixture
def tiers(device: TimedDevice) -> Iterator[DeviceTiers]:
    tiers = DeviceTiers(device, DeviceArena(device, 8 * GRANULE), host_bytes=8 * GRANULE)
    yield tiers
    tiers.close()


def told(tiers: DeviceTiers, ops: Sequence[tuple[int, int, int, int, int]], count: int = 1) -> list[Told]:
    """What the operations are reported as, in so many reports."""
    found: list[Told] = []
    tiers.report_to(lambda ids, ok, us: found.append((ids.tolist(), ok.tolist(), us.tolist())))
    with tiers._device.active():
        tiers.begin(np.array(ops, np.int64))
    while len(found) < count:
        tiers.wait(10.0)
    return found


def test_copies_that_were_enqueued_together_share_the_time_by_their_sizes(tiers: DeviceTiers) -> None:
    ops = [
        (MemoryOpKind.STORE, 7, 0, 2, 2),
        (MemoryOpKind.ZERO, -1, 0, 0, 3),
        (MemoryOpKind.STORE, 8, 4, 0, 1),
    ]
    assert told(tiers, ops) == [([7, 8], [True, True], [200, 100])]


@pytest.mark.parametrize("kind", [MemoryOpKind.STORE, MemoryOpKind.LOAD])
def test_copies_of_a_device_that_is_lost_have_failed_and_nobody_waits_for_them(
    tiers: DeviceTiers, device: TimedDevice, kind: MemoryOpKind, caplog: pytest.LogCaptureFixture
) -> None:
    device.error = RuntimeError("an illegal memory access was encountered")
    with caplog.at_level(logging.WARNING):
        found = told(tiers, [(kind, 7, 0, 2, 2), (kind, 8, 4, 0, 1)])
    assert found == [([7, 8], [False, False], [0, 0])]
    assert "copies of KV did not end: an illegal memory access was encountered" in caplog.text


def test_a_copy_that_is_not_taken_fails_alone(tiers: DeviceTiers, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = DeviceTiers._execute

    def refuses(self: DeviceTiers, kind: int, source: int, to: int, granules: int) -> None:
        if source == 4:
            raise RuntimeError("no such copy")
        execute(self, kind, source, to, granules)

    monkeypatch.setattr(DeviceTiers, "_execute", refuses)
    arena = tiers._arena.memory
    arena[: 2 * GRANULE] = 3
    found = told(tiers, [(MemoryOpKind.STORE, 7, 0, 2, 2), (MemoryOpKind.STORE, 8, 4, 0, 1)])
    assert found == [([7, 8], [True, False], [400, 200])]
    assert torch.equal(tiers._pinned[2 * GRANULE : 4 * GRANULE], arena[: 2 * GRANULE])
