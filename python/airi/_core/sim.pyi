"""Replicas of the runtime under virtual time. Times are integer microseconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from airi._core import ModelConfig, RuntimeConfig, _PybindType

class LogHistogram(metaclass=_PybindType):
    """Counts of microseconds in buckets of 1/64 of their value, single ones below 128."""

    def __init__(self) -> None: ...
    def add(self, value: int, count: int = 1) -> None: ...
    def merge(self, other: LogHistogram) -> None: ...
    def quantile(self, q: float) -> float:
        """The smallest value that a share q do not exceed, off by at most 1/128 of it; 0 where there is none."""

    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def max(self) -> int: ...

class Router(metaclass=_PybindType):
    """Chooses the replica of each request: round_robin, least_loaded or prefix. `locality` is route.ReplicaRouter."""

    def __init__(
        self,
        name: str,
        *,
        replicas: int,
        part_tokens: int = 512,
        kv_tokens: int = 0,
        load_guard: float = 1.5,
    ) -> None: ...
    def pick(self, parts: Sequence[int], load: Sequence[int]) -> int: ...

class Simulator(metaclass=_PybindType):
    """N replicas of the runtime under virtual time behind a router.

    step_time: the pieces bound by memory and by arithmetic, each microseconds per step, token,
    sequence, token of decode context and prefill pair. step_ratios: of each piece, evenly spaced quantiles of what
    its steps take over that; none: just that.
    """

    def __init__(
        self,
        *,
        runtime: RuntimeConfig,
        model: ModelConfig,
        step_time: Sequence[tuple[float, float, float, float, float]],
        step_ratios: Sequence[Sequence[float]] = ((), ()),
        replicas: int = 1,
        router: str = "prefix",
        load_guard: float = 1.5,
        part_tokens: int = 512,
        concurrency: int | None = None,
        ttft_us: int | None = None,
        itl_us: int | None = None,
        keep_rows: bool = False,
        threads: int = 1,
    ) -> None: ...
    def set_tenant(self, tenant: int, weight: float) -> None: ...
    def feed(
        self,
        *,
        arrival_us: npt.NDArray[np.int64],
        tenant: npt.NDArray[np.int64],
        band: npt.NDArray[np.int32],
        input_tokens: npt.NDArray[np.int32],
        output_tokens: npt.NDArray[np.int32],
        part_start: npt.NDArray[np.int64],
        parts: npt.NDArray[np.int64],
    ) -> None:
        """Lets requests arrive, in order; the parts of row i are parts[part_start[i]:part_start[i + 1]]."""

    def drain(self, span_us: int) -> bool:
        """Runs so much longer without arrivals; returns whether anything is left to do."""

    def take_rows(self) -> npt.NDArray[np.void]:
        """Finished requests since the last call, a structured array; empty without keep_rows."""

    def results(self) -> dict[str, Any]: ...
    @property
    def now_us(self) -> int: ...
    def check_invariants(self) -> None: ...

def prompt_tokens(request_id: int, input_tokens: int, parts: Sequence[int], part_tokens: int) -> list[int]:
    """The tokens of a simulated prompt."""
