"""A device whose steps take a known time, and a runtime that has learnt it: what latency targets are tested on."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from airi._core.parts import StepTimeModel

from .harness import Config, Executor, ModelSpec, Row, Step
from .naive_slo import Work

Targets = tuple[tuple[int | None, int | None], ...]


def true_time(work: Work) -> int:
    """Microseconds that a step takes on the device of these tests."""
    tokens, seqs, context, pairs = work
    memory = 200 + tokens + 40 * seqs + 0.1 * context
    arithmetic = 100 + 20 * tokens + 2 * seqs + 0.1 * context + 0.05 * pairs
    return round(max(memory, arithmetic))


def trained_state() -> list[float]:
    """What a model has learnt from steps of that device."""
    model, rng = StepTimeModel(), random.Random(11)
    for i in range(3000):
        decodes = rng.randint(0, 64)
        context = sum(rng.randint(1, 400) for _ in range(decodes))
        chunk = rng.randint(1, 256) if i % 2 else 0
        if decodes + chunk == 0:
            continue
        pairs = chunk * (rng.randint(0, 600) + chunk / 2)
        work = (decodes + chunk, decodes + (chunk > 0), context, pairs)
        model.observe(work, true_time(work))
    return model.export_state()


STATE = trained_state()


def work_of(rows: list[Row]) -> Work:
    decodes = [r for r in rows if r.samples and r.count == 1 and r.draw > 0]
    chunks = [r for r in rows if r not in decodes]
    return (
        sum(r.count for r in rows),
        len(rows),
        sum(r.start + 1 for r in decodes),
        sum(r.count * (r.start + r.count / 2) for r in chunks),
    )


@dataclass
class Stream:
    """When a request's tokens came."""

    arrival: int
    prompt: int
    emitted: list[int] = field(default_factory=list)
    first_chunk: int | None = None

    @property
    def ttft(self) -> int:
        return self.emitted[0] - self.arrival

    @property
    def gaps(self) -> list[int]:
        return [b - a for a, b in itertools.pairwise(self.emitted)]


class TimedExecutor(Executor):
    """An Executor on a device that takes true_time() for a step, and whose model of it is trained."""

    def __init__(self, spec: ModelSpec, config: Config | None = None) -> None:
        super().__init__([spec], config)
        self.runtime.step_time(0).import_state(STATE)
        self.streams: dict[int, Stream] = {}
        self.durations: list[int] = []

    def ask(self, prompt: int, new: int, *, band: int = 0, seed: int = 0, tenant: int = 0) -> int:
        rng = random.Random(seed or self.next_id + 1)
        text = [rng.randint(1, 900) for _ in range(prompt)]
        request = self.accepted(text, max_new=new, band=band, tenant=tenant)
        self.streams[request] = Stream(self.now, prompt)
        return request

    def tick(self) -> Step | None:
        step = self.plan()
        if step is None:
            self.now += 100
            return None
        took = true_time(work_of(step.rows))
        for row in step.rows:
            stream = self.streams[row.request]
            if stream.first_chunk is None:
                stream.first_chunk = self.now
            if row.samples:
                stream.emitted.append(self.now + took)
        self.durations.append(took)
        self.commit(step, device_us=took)
        return step


def spec_of(
    targets: Targets,
    *,
    blocks: int = 2000,
    max_model_len: int = 1024,
    max_num_seqs: int = 32,
    max_batch_tokens: int = 256,
) -> ModelSpec:
    return ModelSpec(
        blocks=blocks,
        block_size=8,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        targets=targets,
    )
