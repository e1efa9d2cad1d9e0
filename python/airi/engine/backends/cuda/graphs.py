"""Decoding steps captured once per number of rows, and replayed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from weakref import WeakMethod

from airi.engine.backends import ProgressCallback
from airi.engine.backends.cuda.device import Device, Graph

__all__ = ["DecodeGraphs", "decode_buckets"]


def decode_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that decoding steps are padded to, ascending: 1, 2, 4, 8, then every eighth up to 256, then
    every thirty-second; the last is `max_rows`."""
    steps = (*(1 << i for i in range(3)), *range(8, 257, 8), *range(288, max_rows, 32))
    return (*(rows for rows in steps if rows < max_rows), max_rows)


class DecodeGraphs:
    """Runs decoding steps in the smallest bucket that holds them, from its graph where there is one.

    With or without a graph a step is padded to the same bucket, so both give the same bits. *Thread safety*: none.
    """

    def __init__(self, device: Device, max_rows: int, work: Callable[[int], None]) -> None:
        """`work` is a method of who keeps this: it does not keep them in turn, or a device's memory would stay taken
        until a garbage collection, and for ever where that has been told to leave what it found alone."""
        self._device = device
        self._buckets = decode_buckets(max_rows)
        self._method = WeakMethod(work)
        self._graphs: dict[int, Graph] = {}

    def capture(self, progress: ProgressCallback | None) -> None:
        """Captures every bucket, the largest first: smaller ones find room in its memory."""
        total = len(self._buckets)
        if progress is not None:
            progress(0, total)
        for done, rows in enumerate(reversed(self._buckets), 1):
            self._work(rows)  # compiles, and lets libraries allocate what they keep
            self._graphs[rows] = self._device.capture(lambda rows=rows: self._work(rows))  # type: ignore[misc]
            if progress is not None:
                progress(done, total)

    def _work(self, rows: int) -> None:
        work = self._method()
        if work is None:
            raise RuntimeError("the model whose steps these are has gone")
        work(rows)

    def run(self, rows: int) -> None:
        """Enqueues a decoding step of so many rows."""
        bucket = self._buckets[bisect_left(self._buckets, rows)]
        graph = self._graphs.get(bucket)
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()
