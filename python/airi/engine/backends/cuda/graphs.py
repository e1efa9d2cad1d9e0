"""Steps captured once per size, and replayed: of decoding rows alone, by their number; of others, by their tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from weakref import WeakMethod

from airi.engine.backends import ProgressCallback
from airi.engine.backends.cuda.device import Device, Graph

__all__ = ["StepGraphs", "capture_all", "decode_buckets", "token_buckets"]


def decode_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that decoding steps are padded to, ascending: 1, 2, 4, 8, then every eighth up to 256, then
    every thirty-second; the last is `max_rows`."""
    steps = (*(1 << i for i in range(3)), *range(8, 257, 8), *range(288, max_rows, 32))
    return (*(rows for rows in steps if rows < max_rows), max_rows)


def token_buckets(max_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens that small steps with prompts are padded to, ascending: every 16th up to 128, every 32nd up to
    256 and every 64th up to 512; none is more than `max_tokens`.

    Larger steps are not worth their padding: what they compute lasts longer than enqueueing it does.
    """
    steps = (*range(16, 129, 16), *range(160, 257, 32), *range(320, 513, 64))
    fitting = tuple(tokens for tokens in steps if tokens < max_tokens)
    return fitting if fitting == steps else (*fitting, max_tokens)


class StepGraphs:
    """Runs steps in the smallest bucket that holds them, from its graph where there is one.

    With or without a graph a step is padded to the same bucket, so both give the same bits. *Thread safety*: none.
    """

    def __init__(self, device: Device, buckets: Sequence[int], work: Callable[[int], None]) -> None:
        """`buckets` ascend. `work` is a method of who keeps this: it does not keep them in turn, or a device's memory
        would stay taken until a garbage collection, and for ever where that has been told to leave what it found
        alone."""
        self._device = device
        self._buckets = tuple(buckets)
        self._method = WeakMethod(work)
        self._graphs: dict[int, Graph] = {}

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes that steps are padded to, ascending."""
        return self._buckets

    def holds(self, size: int) -> bool:
        """Whether a bucket is large enough."""
        return size <= self._buckets[-1]

    def capture(self, bucket: int) -> None:
        """Captures one bucket."""
        self._work(bucket)  # compiles, and lets libraries allocate what they keep
        self._graphs[bucket] = self._device.capture(lambda: self._work(bucket))

    def run(self, size: int) -> None:
        """Enqueues a step that a bucket holds."""
        bucket = self._buckets[bisect_left(self._buckets, size)]
        graph = self._graphs.get(bucket)
        if graph is None:
            self._work(bucket)
        else:
            graph.replay()

    def _work(self, bucket: int) -> None:
        work = self._method()
        if work is None:
            raise RuntimeError("the model whose steps these are has gone")
        work(bucket)


def capture_all(graphs: Sequence[StepGraphs], progress: ProgressCallback | None) -> None:
    """Captures every bucket, of each the largest first: smaller ones find room in its memory."""
    total = sum(len(one.buckets) for one in graphs)
    if progress is not None:
        progress(0, total)
    places = ((one, bucket) for one in graphs for bucket in reversed(one.buckets))
    for done, (one, bucket) in enumerate(places, 1):
        one.capture(bucket)
        if progress is not None:
            progress(done, total)
