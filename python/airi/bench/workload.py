"""Prompts for benches: token ids drawn from a seed, in lengths of a chosen mix."""

from __future__ import annotations

import random
from dataclasses import dataclass

from airi.errors import ConfigError

__all__ = ["MIXES", "Job", "Workload"]

MIXES = ("random", "prefix", "mixed", "one-long")
"""random: lengths around the given ones. prefix: all prompts begin alike. mixed: many short, some long (log-normal),
as chat traffic. one-long: the first prompt is sixteen times as long as the others."""

_FIRST_ID = 100
_LONG_FACTOR = 16
_SIGMA = 0.8


@dataclass(frozen=True, slots=True)
class Job:
    """One request."""

    prompt: list[int]
    output_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many requests, and their lengths in tokens. The same seed gives the same requests."""

    requests: int = 64
    input_len: int = 256
    output_len: int = 128
    mix: str = "random"
    range_ratio: float = 0.0
    """Lengths are drawn from `len * (1 - range_ratio)` to `len * (1 + range_ratio)`."""
    prefix_len: int = 0
    """Tokens that all prompts share, on top of input_len; mix "prefix" without it shares half of input_len."""
    vocab: int = 1000
    """Ids are below this, and from 100 on, where special tokens rarely are."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "input_len", "output_len"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1", field=name)
        if not 0.0 <= self.range_ratio < 1.0:
            raise ConfigError(
                f"range_ratio is {self.range_ratio:g}; it must be in [0, 1)", field="range_ratio"
            )
        if self.mix not in MIXES:
            raise ConfigError(f"mix is {self.mix!r}; accepted: {', '.join(MIXES)}", field="mix")
        if self.vocab <= _FIRST_ID:
            raise ConfigError(f"vocab is {self.vocab}; it must be above {_FIRST_ID}", field="vocab")

    def jobs(self) -> list[Job]:
        """The requests, in the order they are sent."""
        draw = random.Random(self.seed)
        shared = self.prefix_len
        own_len = self.input_len
        if self.mix == "prefix" and not shared:
            shared = self.input_len // 2
            own_len = max(1, self.input_len - shared)
        prefix = self._ids(draw, shared)
        jobs = []
        for i in range(self.requests):
            length = self._length(draw, own_len)
            if self.mix == "one-long":
                length = self.input_len * _LONG_FACTOR if i == 0 else self.input_len
            jobs.append(Job(prefix + self._ids(draw, length), self._length(draw, self.output_len)))
        return jobs

    def _length(self, draw: random.Random, around: int) -> int:
        if self.mix == "mixed":
            return max(
                1, min(around * _LONG_FACTOR, round(around * draw.lognormvariate(-(_SIGMA**2) / 2, _SIGMA)))
            )
        low, high = round(around * (1 - self.range_ratio)), round(around * (1 + self.range_ratio))
        return draw.randint(max(1, low), max(1, high))

    def _ids(self, draw: random.Random, count: int) -> list[int]:
        return [draw.randrange(_FIRST_ID, self.vocab) for _ in range(count)]
