"""Host memory and a disk file beside the KV arena: executes the memory operations that the core plans."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.arena import allocate_arena, format_bytes
from airi.errors import ConfigError

__all__ = ["MAX_OPS", "DiskTier", "KvTiers", "Op", "TierFiles", "open_disk", "whole_granules"]

logger = logging.getLogger(__name__)

MAX_OPS = 4096
"""Memory operations of one step; more wait for the next. 160 KiB per buffer set."""

_MOST_SAID = 100
_GRANULE = _core.GRANULE_BYTES
_Kind = _core.MemoryOpKind
Op = tuple[int, int, int, int, int]
"""Kind, id, from, to, granules."""

_Report = Callable[[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]], None]


class DiskTier:
    """A file of granules that nobody else sees, each block of it with a checksum that is kept in memory.

    *Thread safety*: none.
    """

    def __init__(self, folder: str, num_bytes: int) -> None:
        """Takes the space; raises ConfigError where there is none. The file has no name: it ends with the process."""
        try:
            with tempfile.TemporaryFile(prefix="airi-kv-", dir=folder) as file:
                self._fd = os.dup(file.fileno())
            os.posix_fallocate(self._fd, 0, num_bytes)
        except OSError as error:
            raise ConfigError(
                f"disk_kv_path is {folder}: {format_bytes(num_bytes)} cannot be taken there: {error.strerror}",
                field="disk_kv_path",
            ) from None
        self._checksums: dict[int, int] = {}
        """By first granule of a block."""

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def write(self, granule: int, block: NDArray[np.uint8]) -> None:
        """Raises OSError; what was there before is lost then."""
        self._checksums.pop(granule, None)
        left = block.data
        offset = granule * _GRANULE
        while left:
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written
        self._checksums[granule] = zlib.crc32(block.data)

    def read(self, granule: int, block: NDArray[np.uint8]) -> None:
        """Fills the block; raises OSError, also where the bytes are not those that were written."""
        done = os.preadv(self._fd, [block.data], granule * _GRANULE)
        if done != block.nbytes:
            raise OSError(f"{done} of {block.nbytes} bytes were read")
        if zlib.crc32(block.data) != self._checksums.get(granule):
            raise OSError("the checksum does not match")


class TierFiles:
    """What tiers beside any arena share: host memory, the disk below it, and how the end of transfers is told.

    *Thread safety*: `wait` is called from any thread, all else from one.
    """

    def __init__(self, host: NDArray[np.uint8], disk: DiskTier | None) -> None:
        self._host = host
        self._disk = disk
        self._report: _Report | None = None
        self._files = ThreadPoolExecutor(1, thread_name_prefix="airi-kv-disk")
        self._ended = threading.Event()
        self._said: set[str] = set()

    def report_to(self, report: _Report) -> None:
        """Where to tell what has ended: (ids, whether each went well, microseconds of each); from any thread."""
        self._report = report

    def wait(self, timeout_s: float) -> None:
        """Returns when something has ended since the last call, or the time is over."""
        self._ended.wait(timeout_s)
        self._ended.clear()

    def close(self) -> None:
        """Lets what runs end, and drops what has not begun."""
        self._files.shutdown(wait=True, cancel_futures=True)

    def _begin_files(self, rows: Iterable[Op]) -> None:
        """Begins what touches the disk, each by itself so that it is told as soon as it has ended."""
        for row in rows:
            if row[0] in (_Kind.SPILL, _Kind.FETCH):
                self._files.submit(self._run, [row])

    def _run(self, ops: Iterable[Op]) -> None:
        done = []
        for kind, transfer, source, to, granules in ops:
            begin = time.perf_counter_ns()
            went_well = self._attempt(kind, source, to, granules)
            if transfer >= 0:
                done.append((transfer, went_well, (time.perf_counter_ns() - begin) // 1000))
        self._tell(done)

    def _attempt(self, kind: int, source: int, to: int, granules: int) -> bool:
        """Executes one operation; whether that went well. The core computes what did not come."""
        try:
            self._execute(kind, source, to, granules)
        except Exception as error:
            self._say(f"a KV {_Kind(kind).name.lower()} failed: {error}")
            return False
        return True

    def _tell(self, done: Sequence[tuple[int, bool, int]]) -> None:
        """Reports transfers as (id, whether it went well, microseconds)."""
        if done and self._report is not None:
            ids, ok, micros = zip(*done, strict=True)
            self._report(np.array(ids, np.int64), np.array(ok, np.bool_), np.array(micros, np.int64))
            self._ended.set()

    def _say(self, what: str) -> None:
        """Once each: a full disk fails every time."""
        if what not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(what)
            logger.warning("%s; further ones like it are not mentioned", what)

    def _execute(self, kind: int, source: int, to: int, granules: int) -> None:
        """One operation. The system calls release the GIL."""
        if self._disk is None:
            raise OSError("there is no disk")
        if kind == _Kind.SPILL:
            self._disk.write(to, self._part(self._host, source, granules))
        else:
            self._disk.read(source, self._part(self._host, to, granules))

    @staticmethod
    def _part(place: NDArray[np.uint8], granule: int, count: int) -> NDArray[np.uint8]:
        return place[granule * _GRANULE : (granule + count) * _GRANULE]


class KvTiers(TierFiles):
    """Copies blocks between an arena in host memory, other host memory and the disk.

    Stores run on the caller's thread, before its batch overwrites what they copy; loads on a second thread, what
    touches the disk on a third, so that neither waits for the other.
    *Thread safety*: `begin` is called from one thread, `wait` from any.
    """

    def __init__(
        self,
        arena: NDArray[np.uint8],
        *,
        host_bytes: int,
        disk_folder: str | None = None,
        disk_bytes: int = 0,
    ) -> None:
        """Takes the memory and the space; raises MemoryBudgetError or ConfigError."""
        super().__init__(allocate_arena(whole_granules(host_bytes)), open_disk(disk_folder, disk_bytes))
        self._arena = arena
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="airi-kv-load")

    def begin(self, ops: NDArray[np.int64]) -> None:
        """Begins operations [n, 5] in their order: stores and zeroes are done on return, others when reported."""
        rows: list[Op] = [tuple(row) for row in ops.tolist()]
        loads = [row for row in rows if row[0] == _Kind.LOAD]
        self._run(row for row in rows if row[0] in (_Kind.STORE, _Kind.ZERO))
        if loads:
            self._loads.submit(self._run, loads)
        self._begin_files(rows)

    def close(self) -> None:
        """As `TierFiles.close`."""
        self._loads.shutdown(wait=True, cancel_futures=True)
        super().close()

    def _execute(self, kind: int, source: int, to: int, granules: int) -> None:
        """One operation. numpy and the system calls release the GIL."""
        if kind == _Kind.ZERO:
            self._part(self._arena, source, granules)[:] = 0
        elif kind == _Kind.STORE:
            self._part(self._host, to, granules)[:] = self._part(self._arena, source, granules)
        elif kind == _Kind.LOAD:
            self._part(self._arena, to, granules)[:] = self._part(self._host, source, granules)
        else:
            super()._execute(kind, source, to, granules)


def whole_granules(num_bytes: int) -> int:
    """The least whole number of granules that holds so many bytes, in bytes."""
    return -(-num_bytes // _GRANULE) * _GRANULE


def open_disk(folder: str | None, num_bytes: int) -> DiskTier | None:
    """The disk tier, if there is a folder for it; raises ConfigError."""
    return None if folder is None else DiskTier(folder, num_bytes)
