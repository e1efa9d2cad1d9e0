"""What a case is, what it may use, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benches.gpu.roofline import Work
from benches.gpu.timing import Timing

Row = dict[str, Any]

_ARENA_FRACTION = 0.75
"""Of the free device memory; the rest is for queries, outputs, copies and what peers allocate."""
_ARENA_BYTES = 100_000_000_000
_TOY_ARENA_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says to cases."""

    tune: bool = False
    vllm_kernels: Path | None = None


@dataclass(slots=True, kw_only=True)
class Bench:
    """The device as cases see it, and one arena for all that run in this process."""

    device: torch.device
    options: Options = field(default_factory=Options)
    kept: dict[str, Any] = field(default_factory=dict)
    """What one case leaves for the next ones of the same process."""
    _arena: torch.Tensor | None = None

    @property
    def toy(self) -> bool:
        """No device: kernels run in Triton's interpreter at small sizes, and there are no speeds."""
        return bool(self.device.type == "cpu")

    def arena(self, most: int | None = None) -> torch.Tensor:
        """One large uint8 tensor, the same for all cases; `most` bytes where it is made and less will do."""
        if self._arena is None:
            self._arena = torch.empty(most or self.arena_bytes(), dtype=torch.uint8, device=self.device)
        return self._arena

    def arena_bytes(self) -> int:
        if self.toy:
            return _TOY_ARENA_BYTES
        free = torch.cuda.mem_get_info(self.device)[0]
        return min(_ARENA_BYTES, int(free * _ARENA_FRACTION)) >> 21 << 21

    def drop_arena(self) -> None:
        """Gives its memory back."""
        self._arena = None
        if not self.toy:
            torch.cuda.empty_cache()


def device_answers() -> bool:
    """False once an illegal access or the like has ended the device's context for this process."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return False
    return True


class Wrong(Exception):
    """A result that is not what it must be: no speed is shown for it."""


class NotHere(Exception):
    """What this case needs is not on this machine: says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question to the device; `run` returns its rows or raises."""

    name: str
    run: Callable[[Bench], list[Row]]
    seconds: float = 5.0
    """About how long it takes with its compilation: not begun where less is left."""


def timed_row(variant: str, timing: Timing | None, work: Work, **more: Any) -> Row:
    """A row of a measurement; `more` holds `goal` (a case of `goals.GOALS`), `error`, `value` and figures to show."""
    row: Row = {"variant": variant, "bytes": work.nbytes, "flops": work.flops, **more}
    if timing is not None:
        row |= {**{k: round(v, 3) for k, v in asdict(timing).items() if k.startswith("p")}, "unit": "us"}
        row |= {"n": timing.n, "how": timing.how}
    return row
