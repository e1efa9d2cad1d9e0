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
from benches.gpu.random_model import random_folder

_MODEL = "random"
_FREE_SHARE = 0.9


@dataclass(slots=True)
class Steps:
    """What some steps of equal kind took."""

    wall_us: list[float] = field(default_factory=list)
    lens: list[int] = field(default_factory=list)
    """Keys of each request half way through."""
    outside: float | None = None
    """Share of the time in which the device had nothing of a step to run; None without a device."""


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

    def outside(self) -> float:
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
        before = -(-rows * keys // 512) + warm + steps + 8
        lens = {self._submit(keys, before + steps): keys for _ in range(rows)}
        while not self._all_began(lens, keys):
            self._take(lens)
        for _ in range(warm):
            self._take(lens)
        found = Steps(lens=[n + steps // 2 for n in lens.values()])
        clock = StepClock()
        with clock.watching():
            for _ in range(steps):
                start = time.perf_counter()
                self._take(lens)
                found.wall_us.append((time.perf_counter() - start) * 1e6)
        found.outside = clock.outside() if self._on_device else None
        self._drop(lens)
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
