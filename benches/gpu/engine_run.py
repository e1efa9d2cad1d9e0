"""The whole engine over a random model: steps as a caller of `Engine.step` waits for them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from airi.bench.shapes import Shape
from benches.gpu.device_time import Outside, outside_of, traced
from benches.gpu.random_model import random_folder

_MODEL = "random"
_FREE_SHARE = 0.9


@dataclass(slots=True)
class Steps:
    """What some steps of equal kind took."""

    wall_us: list[float] = field(default_factory=list)
    lens: list[int] = field(default_factory=list)
    """Keys of each request half way through."""
    between: float | None = None
    """Share of the time that lies between steps on the device; None without one."""


class StepClock:
    """The device's own times at which steps began and ended. *Thread safety*: none."""

    def __init__(self) -> None:
        self._steps: list[tuple[Any, Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the events of every step that is collected meanwhile."""
        from airi.engine.backends.cuda.pipeline import DevicePipeline

        collect = DevicePipeline.collect

        def noted(running: Any) -> Any:
            oldest = running._flying[0]
            self._steps.append((oldest.began, oldest.ended))
            return collect(running)

        with mock.patch.object(DevicePipeline, "collect", noted):
            yield

    def between(self) -> float:
        """The share of time between the first step's begin and the last one's end that lies between steps."""
        gaps = [
            max(0.0, later[0].micros_since(earlier[1])) for earlier, later in itertools.pairwise(self._steps)
        ]
        whole = self._steps[-1][1].micros_since(self._steps[0][0])
        return sum(gaps) / whole if whole > 0 else 0.0


class RandomEngine:
    """An engine with one random model. *Thread safety*: none."""

    def __init__(
        self,
        device: torch.device,
        shape: Shape,
        *,
        rows: int,
        batch_tokens: int,
        kv_memory: int | None = None,
    ) -> None:
        from airi.engine import Engine, EngineOptions, ModelOptions

        toy = device.type == "cpu"
        with random_folder(shape) as folder:
            self.engine = Engine(
                EngineOptions(
                    models=(ModelOptions(path=str(folder), name=_MODEL),),
                    device="cpu" if toy else "cuda",
                    backend="cuda" if toy else "auto",
                    block_size=16 if toy else 64,
                    max_num_seqs=rows,
                    max_batch_tokens=batch_tokens,
                    kv_memory=kv_memory,
                    kv_fraction=_FREE_SHARE,
                    prefix_caching=False,
                )
            )
        self.shape, self._next = shape, 1
        self._draw = torch.Generator().manual_seed(3)
        self._on_device = not toy

    @property
    def info(self) -> Any:
        """The model's `ModelInfo`."""
        return self.engine.models[0].runner.model.info

    def decode(self, rows: int, keys: int, *, steps: int, warm: int) -> Steps:
        """`rows` requests with prompts of `keys` tokens; measures once all of them decode."""
        lens = self._decoding(rows, keys, warm=warm, steps=steps)
        found = Steps(lens=[n + steps // 2 for n in lens.values()])
        clock = StepClock()
        with clock.watching():
            found.wall_us = self._walls(lens, steps)
        found.between = clock.between() if self._on_device else None
        self._drop(lens)
        return found

    def outside(self, rows: int, keys: int, *, steps: int, warm: int) -> Outside | None:
        """As `decode`, but asks how much of a step is not spent on the device; None where no device is seen.

        Half of the steps that are timed come before those that are traced and half after, so that rows are as long in
        both on average.
        """
        half = steps // 2
        lens = self._decoding(rows, keys, warm=warm, steps=2 * steps + 3 * warm)
        with traced(on_device=self._on_device):  # the first trace sets things up
            self._walls(lens, warm)
        self._walls(lens, warm)
        walls = self._walls(lens, half)
        with traced(on_device=self._on_device) as intervals:
            self._walls(lens, steps)
        self._walls(lens, warm)
        walls += self._walls(lens, half)
        self._drop(lens)
        return outside_of(walls, intervals, steps)

    def _decoding(self, rows: int, keys: int, *, warm: int, steps: int) -> dict[int, int]:
        """The lengths of requests, by id, of which all decode and will for `steps` more steps."""
        most = -(-rows * keys // 512) + warm + steps + 8
        lens = {self._submit(keys, most): keys for _ in range(rows)}
        while not self._all_began(lens, keys):
            self._take(lens)
        self._walls(lens, warm)
        return lens

    def _walls(self, lens: dict[int, int], steps: int) -> list[float]:
        """Microseconds of each of so many steps."""
        found = []
        for _ in range(steps):
            start = time.perf_counter()
            self._take(lens)
            found.append((time.perf_counter() - start) * 1e6)
        return found

    def prefill(self, prompts: int, tokens: int) -> Steps:
        """Seconds from submitting all prompts to the last one's first token, as one wall time."""
        start = time.perf_counter()
        lens = {self._submit(tokens, 2): tokens for _ in range(prompts)}
        while not self._all_began(lens, tokens):
            self._take(lens)
        found = Steps(wall_us=[(time.perf_counter() - start) * 1e6], lens=[tokens] * prompts)
        self._drop(lens)
        return found

    def _submit(self, tokens: int, most: int) -> int:
        from airi.sampling_params import SamplingParams

        ids = torch.randint(1, self.shape.vocab, (tokens,), generator=self._draw).numpy().astype("int32")
        params = SamplingParams(max_tokens=most, ignore_eos=True, seed=1)
        request_id, self._next = self._next, self._next + 1
        self.engine.add_request(request_id, _MODEL, ids, params)
        return request_id

    def _take(self, lens: dict[int, int]) -> None:
        for output in self.engine.step():
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id} ended: {output.error.message}")
            if output.request_id in lens:
                lens[output.request_id] += len(output.tokens)

    @staticmethod
    def _all_began(lens: dict[int, int], prompt: int) -> bool:
        return all(n > prompt for n in lens.values())

    def _drop(self, lens: dict[int, int]) -> None:
        for request_id in lens:
            self.engine.cancel(request_id)
        while self.engine.has_work():
            self.engine.step()
