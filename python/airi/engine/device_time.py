"""What requests use of a device: each step's measured time, divided over its rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from airi.engine.runner import StepArrays
from airi.outputs import Output

__all__ = ["DeviceTime", "shares"]


def shares(took_us: int, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """`took_us` divided over rows of `tokens` [n]: whole microseconds that add up to it, each within 1 of its part.

    A row's part is that of its tokens among the step's, of prompts or generated, whatever they attend to: it does not
    depend on what a model of step times has learnt so far.
    REQUIRES: at least one token; took_us * sum(tokens) below 2^63.
    """
    ends = np.cumsum(tokens, dtype=np.int64)
    parts: NDArray[np.int64] = ends * took_us // ends[-1]
    parts[1:] -= parts[:-1]
    return parts


class DeviceTime:
    """What each request has used since its last output said so: of every device that its model's steps ran on.

    A row that a step still has for a request that has ended is nobody's: it comes of planning one step ahead.
    *Thread safety*: none. *Invariant*: what is counted for a request is told in its outputs, once.
    """

    def __init__(self, num_devices: int) -> None:
        self._num_devices = num_devices
        self._used_us: dict[int, int] = {}
        self._metered: set[int] = set()

    def begin(self, request_id: int, *, metered: bool) -> None:
        """Counts for a request from now on; with `metered` it is to hear of every step."""
        self._used_us[request_id] = 0
        if metered:
            self._metered.add(request_id)

    def add(self, arrays: StepArrays, rows: int, took_us: int) -> list[int]:
        """Counts a step of so many rows that took this long; returns those of its requests that are metered."""
        if not rows:
            return []
        ids = arrays.request_ids[:rows].tolist()
        starts = arrays.query_start[: rows + 1]
        parts = shares(took_us * self._num_devices, starts[1:] - starts[:-1]).tolist()
        used = self._used_us
        for request_id, part in zip(ids, parts, strict=True):
            if request_id in used:
                used[request_id] += part
        return [i for i in ids if i in self._metered] if self._metered else []

    def tell(self, outputs: Iterable[Output]) -> None:
        """Has each output say what its request has used since the one before; a last one ends the count."""
        used = self._used_us
        for output in outputs:
            request_id = output.request_id
            output.device_us = used.get(request_id, 0)
            if output.finish_reason is not None:
                used.pop(request_id, None)
                self._metered.discard(request_id)
            elif request_id in used:
                used[request_id] = 0
