"""A device with a host tier and a disk beside it, over real contents, whose transfers take time and may fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from airi._core import MemoryOpKind

from .harness import Config, ModelSpec, Step, TokenRule, next_token
from .pipeline import Device, Pipeline

Block = dict[int, int]
"""What a block holds: a token by position within it."""
GARBAGE: Block = dict.fromkeys(range(64), -7)

PLACES = {
    MemoryOpKind.STORE: ("device", "host"),
    MemoryOpKind.LOAD: ("host", "device"),
    MemoryOpKind.SPILL: ("host", "disk"),
    MemoryOpKind.FETCH: ("disk", "host"),
}


@dataclass(kw_only=True)
class Weather:
    """How transfers go."""

    failing: Callable[[MemoryOpKind], bool] = lambda kind: False
    delay_us: Callable[[MemoryOpKind], int] = lambda kind: 20
    device_us: Callable[[Step], int] = lambda step: 100 + 40 * sum(row.count for row in step.rows)


@dataclass(kw_only=True)
class Running:
    """A transfer that has begun."""

    kind: MemoryOpKind
    id: int
    source: int
    to: int
    due: int
    ok: bool
    micros: int
    content: Block | None = None


@dataclass
class Memory:
    """Blocks by granule, in each place. The device's are the Device's own."""

    blocks: dict[str, dict[int, Block]] = field(default_factory=lambda: {"host": {}, "disk": {}})
    busy: list[tuple[str, int]] = field(default_factory=list)
    """Places that a running transfer reads or writes."""


class TieredDevice(Device):
    """Begins operations in order before the batch. A store is done then; all others end whenever they like."""

    def __init__(self, specs: list[ModelSpec], rule: TokenRule, weather: Weather) -> None:
        super().__init__(specs, rule)
        self.weather = weather
        self.memory = Memory()
        self.running: list[Running] = []
        self.counts = dict.fromkeys(MemoryOpKind, 0)
        self.now = 0

    def begin_ops(self, step: Step) -> None:
        for kind_code, transfer, source, to, granules in step.ops:
            kind = MemoryOpKind(kind_code)
            self.counts[kind] += 1
            if kind == MemoryOpKind.ZERO:
                self.zero(range(source, source + granules))
                continue
            assert granules == 1
            self.check_targets(kind, source, to)
            delay = self.weather.delay_us(kind)
            op = Running(
                kind=kind,
                id=transfer,
                source=source,
                to=to,
                due=self.now + delay,
                ok=not self.weather.failing(kind),
                micros=delay,
            )
            if kind == MemoryOpKind.STORE:
                op.content = self.read("device", source)
            self.running.append(op)

    def zero(self, granules: range) -> None:
        raise AssertionError(f"nobody moves slabs, and {granules} become zero")

    def check_targets(self, kind: MemoryOpKind, source: int, to: int) -> None:
        """T1: nobody reads what is being written, nor writes what is being read."""
        origin, target = PLACES[kind]
        for other in self.running:
            reads, writes = PLACES[other.kind]
            assert (target, to) not in ((reads, other.source), (writes, other.to)) or reads == "device"
            assert (origin, source) != (writes, other.to), "T1: it is still being written"

    def read(self, place: str, granule: int) -> Block:
        if place != "device":
            return dict(self.memory.blocks[place][granule])
        return {offset: token for (entry, offset), token in self.kv.items() if entry == granule}

    def write(self, place: str, granule: int, block: Block) -> None:
        if place != "device":
            self.memory.blocks[place][granule] = dict(block)
            return
        for offset, token in block.items():
            self.kv[granule, offset] = token

    def end_due(self, now: int) -> list[Running]:
        """What has ended by now. It reads and writes at the last moment; where it fails it leaves garbage."""
        self.now = now
        done = sorted((op for op in self.running if op.due <= now), key=lambda op: (op.due, op.id))
        for op in done:
            self.running.remove(op)
            origin, target = PLACES[op.kind]
            content = op.content if op.content is not None else self.read(origin, op.source)
            self.write(target, op.to, content if op.ok else GARBAGE)
        return done


class Tiered(Pipeline):
    """A Pipeline with tiers: completions are told as they come, out of band."""

    def __init__(
        self,
        models: list[ModelSpec] | None = None,
        config: Config | None = None,
        rule: TokenRule = next_token,
        weather: Weather | None = None,
    ) -> None:
        super().__init__(models, config, rule)
        self.tiered = self.device = self.make_device(weather or Weather())
        for model in range(len(self.specs)):
            self.train(model)

    def make_device(self, weather: Weather) -> TieredDevice:
        return TieredDevice(self.specs, self.rule, weather)

    def train(self, model: int) -> None:
        """Steps of 100 us and 40 us a token."""
        rng = random.Random(model)
        step_time = self.runtime.step_time(model)
        for _ in range(400):
            seqs = rng.randint(1, 8)
            chunk = rng.choice([0, rng.randint(1, 40)])
            tokens = seqs + chunk
            step_time.observe((tokens, seqs + (chunk > 0), 0, 0.0), 100 + 40 * tokens)

    def step(self, **kwargs: object) -> Step | None:
        self.report()
        if self.in_flight and "device_us" not in kwargs:
            kwargs["device_us"] = self.tiered.weather.device_us(self.in_flight[0])
        planned = super().step(**kwargs)
        if planned is None and self.runtime.has_work():
            assert self.tiered.running, "nothing to do, and nothing to wait for"
            self.now = max(self.now + 1, min(op.due for op in self.tiered.running))
        return planned

    def report(self) -> None:
        done = self.tiered.end_due(self.now)
        if done:
            self.runtime.complete_transfers(
                np.array([op.id for op in done], np.int64),
                np.array([op.ok for op in done], np.bool_),
                np.array([op.micros for op in done], np.int64),
            )

    def settle(self) -> None:
        """Lets every transfer end."""
        while self.tiered.running:
            self.now = max(op.due for op in self.tiered.running)
            self.report()
            self.runtime.step(self.now)

    def commit(self, step: Step, **kwargs: object) -> None:
        kwargs.setdefault("device_us", self.tiered.weather.device_us(step))
        self.tiered.now = self.now
        super().commit(step, **kwargs)  # type: ignore[arg-type]
