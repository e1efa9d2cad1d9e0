"""What a device's memory does not hold, in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from airi.engine.arena import format_bytes
from airi.engine.backends.cuda.device import Device
from airi.errors import MemoryBudgetError

__all__ = ["LESS_STEPS", "LESS_WEIGHTS", "TooLargeError", "enough_memory", "first_line"]

LESS_WEIGHTS = "the model's size (quantization, fewer models), or take a larger device"
"""What to lower where weights do not fit."""
LESS_STEPS = "kv_memory, max_batch_tokens or max_num_seqs"
"""What to lower where memory of steps does not fit."""

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class TooLargeError(RuntimeError):
    """What is known to need more memory than is free, before any of it was taken."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"out of memory: {num_bytes} bytes are needed")
        self.num_bytes = num_bytes


_WORDED = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""By drivers and by Triton, by the host in a device's place, and by libraries of matrix products."""


@contextmanager
def enough_memory(device: Device, name: str, what: str, less: str) -> Iterator[None]:
    """Has missing memory raise MemoryBudgetError: who lacks how much of the device's for what, and what to lower."""
    before = sys.exception()
    try:
        yield
    except RuntimeError as error:
        cause = _of_memory(error, before)
        if cause is None:
            raise
        free, total = device.memory()
        asked = _asked(cause)
        missing = "" if asked is None else f"{format_bytes(max(asked - free, 1))} are missing: "
        raise MemoryBudgetError(
            f"{name}: {missing}{what} do not fit {device.description}, of whose {format_bytes(total)} "
            f"{format_bytes(free)} are free; lower {less}",
            field="kv_memory",
        ) from None


def _of_memory(error: BaseException, before: BaseException | None) -> BaseException | None:
    """The error that says that memory is missing: itself, or what it came up in place of, as far as that is not from
    `before`. A capture that was broken off ends with an error of its own, whatever broke it."""
    import torch

    found: BaseException | None = error
    while found is not None and found is not before:  # only torch's own allocator has a class for it
        if isinstance(found, torch.OutOfMemoryError) or any(words in str(found) for words in _WORDED):
            return found
        found = found.__context__
    return None


def first_line(error: BaseException) -> str:
    """What an error says, without the advice that drivers and torch put below it."""
    return str(error).partition("\n")[0]


def _asked(error: BaseException) -> int | None:
    """Bytes of the allocation that failed, as torch words it, or of all that is needed where that is known."""
    if isinstance(error, TooLargeError):
        return error.num_bytes
    match = re.search(r"[Tt]ried to allocate ([\d.]+) ([KMG]iB|B|bytes)", str(error))
    return None if match is None else int(float(match[1]) * _UNITS.get(match[2], 1))
