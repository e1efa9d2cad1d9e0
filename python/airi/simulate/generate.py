"""Requests that no file holds: drawn from a few figures, the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from airi.errors import ConfigError
from airi.sampling_params import MAX_PRIORITY
from airi.simulate.batches import PIECE_ROWS, Batch, Int32

__all__ = ["Generator"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """An open-loop load: gaps between arrivals and lengths of requests are gamma-distributed.

    Raises ConfigError for a value that cannot work.
    """

    rate: float
    """Requests per second, of all tenants together."""
    requests: int = 10_000
    input: float = 512
    """Mean tokens of a prompt, beside its prefix."""
    output: float = 128
    """Mean tokens of an answer."""
    spread: float = 1.0
    """Standard deviation of lengths over their mean; 0: all are equal."""
    burstiness: float = 1.0
    """The same of gaps between arrivals; 1: a Poisson process; 0: even."""
    tenants: int = 1
    """Each request is of one of them, drawn evenly."""
    prefix: int = 0
    """Tokens that all prompts of a tenant begin with: a multiple of what a part stands for."""
    seed: int = 0
    part_tokens: int = 512

    _BOUNDS: ClassVar[dict[str, tuple[float, float]]] = {
        "rate": (1e-6, 1e9),
        "requests": (1, 1e12),
        "input": (1, 1e7),
        "output": (1, 1e7),
        "spread": (0, 100),
        "burstiness": (0, 100),
        "tenants": (1, 1e9),
        "prefix": (0, 1e7),
        "seed": (0, 2**64),
        "part_tokens": (1, 2**20),
    }

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds: Any = int if field.type == "int" else int | float
            least, most = self._BOUNDS[field.name]
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                what = "a whole number" if kinds is int else "a number"
                raise ConfigError(
                    f"{field.name} is {value!r}; it must be {what} from {least:g} to {most:g}",
                    field=field.name,
                )
        if self.prefix % self.part_tokens:
            raise ConfigError(
                f"prefix is {self.prefix}; it must be a multiple of {self.part_tokens}", field="prefix"
            )

    @classmethod
    def parse(cls, text: str, *, part_tokens: int = 512) -> Generator:
        """From NAME=NUMBER pairs between commas, such as `rate=20,requests=100000`."""
        known = [field.name for field in fields(cls) if field.name != "part_tokens"]
        found: dict[str, Any] = {}
        for pair in text.split(","):
            name, _, value = pair.strip().partition("=")
            if name not in known:
                raise ConfigError(f"generate has no {name!r}; it takes {', '.join(known)}", field="generate")
            if name in found:
                raise ConfigError(f"generate is {text!r}; it names {name} twice", field="generate")
            try:
                found[name] = _number(value)
            except ValueError:
                raise ConfigError(
                    f"generate has {pair.strip()!r}; give NAME=NUMBER", field="generate"
                ) from None
        if "rate" not in found:
            raise ConfigError(f"generate is {text!r}; it must name a rate", field="generate")
        try:
            return cls(**found, part_tokens=part_tokens)
        except ConfigError as error:
            raise ConfigError(f"generate: {error}", field="generate") from None

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.requests:,} drawn requests"

    @property
    def tenant_names(self) -> dict[int, str]:
        """None: they are numbers."""
        return {}

    def tenant(self, name: str) -> int:
        """The number of a tenant; raises ConfigError for what is none."""
        try:
            return int(name)
        except ValueError:
            raise ConfigError(f"tenant is {name!r}; drawn ones are whole numbers", field="tenant") from None

    def batches(self) -> Iterator[Batch]:
        """All requests, in order of arrival; a few thousand at a time."""
        random = np.random.default_rng(self.seed)
        clock_us = 0.0
        parts = np.arange(self.prefix // self.part_tokens)
        for first in range(0, self.requests, PIECE_ROWS):
            count = min(PIECE_ROWS, self.requests - first)
            arrivals = clock_us + np.cumsum(_gamma(random, 1e6 / self.rate, self.burstiness, count))
            clock_us = float(arrivals[-1])
            tenant = random.integers(0, self.tenants, count)
            yield Batch(
                arrival_us=np.rint(arrivals).astype(np.int64),
                tenant=tenant,
                band=np.full(count, MAX_PRIORITY, np.int32),  # priority 0, as rows of a trace that name none
                input_tokens=self.prefix + _lengths(random, self.input, self.spread, count),
                output_tokens=_lengths(random, self.output, self.spread, count),
                part_start=np.arange(count + 1) * len(parts),
                parts=(tenant[:, None] * len(parts) + parts).ravel(),
            )


def _number(text: str) -> int | float:
    """A whole number also where it is written as 1e6."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        return int(value) if value.is_integer() else value


def _gamma(random: np.random.Generator, mean: float, spread: float, count: int) -> Float64:
    if spread == 0:
        return np.full(count, mean)
    return random.gamma(1 / spread**2, mean * spread**2, count)


def _lengths(random: np.random.Generator, mean: float, spread: float, count: int) -> Int32:
    lengths: Int32 = np.clip(np.rint(_gamma(random, mean, spread, count)), 1, 1 << 30).astype(np.int32)
    return lengths
