"""A Llama whose weights are random and written nowhere, on a device, step by step.

All tensors are views of one buffer of random values: on the device each has memory of its own, so steps read as many
bytes as a real model's.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from airi.bench.shapes import Shape
from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.device import CpuDevice, CudaDevice, Device
from airi.engine.backends.cuda.interface import CudaBinding, CudaStep, DeviceBatch
from airi.engine.backends.cuda.model import CudaBackend, CudaDecoder
from airi.engine.checkpoint import RawTensor

LLAMA_8B = Shape(
    hidden=4096,
    inner=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    window=32768,
    tied=False,
)
TOY = Shape(hidden=64, inner=96, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=128, window=512)
_STD = 0.015
"""About 1 / sqrt(hidden) of the large shape: activations stay of a size that 16 bits hold well."""
_ONE = 0x3F80


class RandomCheckpoint:
    """Gives any tensor of the shape; what `airi.engine.checkpoint.Checkpoint` is to a folder."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self._shapes = shape.tensors()
        largest = max(math.prod(size) for size in self._shapes.values())
        draw = np.random.default_rng(seed)
        # A prime number of values, repeated: rows differ, and drawing takes no time.
        few = draw.standard_normal(min(largest, 8_388_593), np.float32) * np.float32(_STD)
        values = (few.view(np.uint32) >> 16).astype(np.uint16)
        self._values = np.resize(values, largest)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    @property
    def num_elements(self) -> int:
        return sum(math.prod(size) for size in self._shapes.values())

    @property
    def nbytes(self) -> int:
        return 2 * self.num_elements

    def dtype(self, name: str) -> str | None:
        return "BF16" if name in self else None

    def tensor(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        """Random bits; ones for a norm's factors."""
        if self._shapes[name] != shape:
            raise ValueError(f"{name} has shape {self._shapes[name]}, expected {shape}")
        if len(shape) == 1:
            return RawTensor(name, "BF16", np.full(shape, _ONE, np.uint16))
        return RawTensor(name, "BF16", self._values[: math.prod(shape)].reshape(shape))


@contextmanager
def random_folder(shape: Shape) -> Iterator[Path]:
    """A folder that the engine takes for a checkpoint of the shape while this lasts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(shape.config()))
        with mock.patch("airi.engine.loader.Checkpoint", return_value=RandomCheckpoint(shape)):
            yield folder


def device_for(device: torch.device) -> Device:
    """The engine's view of it."""
    if device.type == "cpu":
        return CpuDevice()
    return CudaDevice(device.index or 0)


class SteppedModel:
    """A loaded model and fixed buffers, for steps of equal rows. *Thread safety*: none."""

    def __init__(
        self, device: Device, shape: Shape, *, max_rows: int, max_tokens: int, max_keys: int, blocks: int
    ) -> None:
        self.device, self.shape, self.block_size = device, shape, 64
        with random_folder(shape) as folder:
            options = LoadOptions(dtype="auto", max_model_len=shape.window)
            self.model: CudaDecoder = CudaBackend(device).load_model(folder, options)
        place = device.torch_device
        per_block = self.model.bytes_per_block(self.block_size)
        with device.active():
            self._arena = device.zeros(blocks * per_block)
            self._batch = _device_batch(max_rows, max_tokens, place)
            columns = -(-max_keys // self.block_size)
            order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1))
            self._blocks = (order * (per_block // 4096)).int().to(place)
            self._table = torch.zeros((max_rows, columns), dtype=torch.int32, device=place)
            self.model.bind(
                CudaBinding(
                    arena=self._arena,
                    block_size=self.block_size,
                    block_table=self._table,
                    batch=self._batch,
                )
            )
        device.synchronize()

    def capture(self) -> None:
        """From here on decoding replays graphs."""
        batch = self._batch
        with self.device.active():
            for buffer in (batch.query_start, batch.seq_lens, batch.slots, batch.logit_rows):
                buffer.zero_()
            self.model.capture(None)
        self.device.synchronize()

    def random_ids(self, count: int) -> torch.Tensor:
        """int32 [count], always the same."""
        draw = torch.Generator().manual_seed(2)
        return torch.randint(0, self.shape.vocab, (count,), generator=draw, dtype=torch.int32)

    def prepare(self, rows: int, queries: int, keys: int, ids: torch.Tensor | None = None) -> CudaStep:
        """Puts a step of `rows` rows, each with `queries` tokens at the end of `keys` keys, into the buffers."""
        batch, place = self._batch, self.device.torch_device
        per_row = -(-keys // self.block_size)
        if rows * per_row > len(self._blocks):
            raise ValueError(
                f"{rows} rows of {keys} keys need {rows * per_row} blocks, got {len(self._blocks)}"
            )
        tokens = rows * queries
        start = torch.arange(rows + 1, dtype=torch.int32) * queries
        with self.device.active():
            self._table[:rows, :per_row] = self._blocks[: rows * per_row].view(rows, per_row)
            batch.tokens[:tokens] = (self.random_ids(tokens) if ids is None else ids).to(place)
            position = torch.arange(keys - queries, keys, dtype=torch.int32).repeat(rows)
            batch.positions[:tokens] = position.to(place)
            batch.query_start.fill_(tokens)
            batch.query_start[: rows + 1] = start.to(place)
            batch.seq_lens.zero_()
            batch.seq_lens[:rows] = keys
            batch.slots.zero_()
            batch.slots[:rows] = torch.arange(rows, dtype=torch.int32).to(place)
            batch.logit_rows.zero_()
            batch.logit_rows[:rows] = (start[1:] - 1).to(place)
        self.device.synchronize()
        return CudaStep(
            num_rows=rows,
            num_tokens=tokens,
            num_logits=rows,
            query_start=start.numpy(),
            seq_lens=np.full(rows, keys, np.int32),
        )

    def logits(self, step: CudaStep) -> torch.Tensor:
        """Of one run of the step."""
        with self.device.active():
            out = self.model.enqueue(step).clone()
        self.device.synchronize()
        return out

    def times_us(self, step: CudaStep, count: int) -> list[float]:
        """Device time of `count` runs of the step, enqueued without waiting in between."""
        with self.device.active():
            events: list[Any] = [self.device.record()]
            for _ in range(count):
                self.model.enqueue(step)
                events.append(self.device.record())
        self.device.synchronize()
        return [b.micros_since(a) for a, b in itertools.pairwise(events)]


def _device_batch(max_rows: int, max_tokens: int, place: torch.device) -> DeviceBatch:
    def ints(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, device=place)

    return DeviceBatch(
        tokens=ints(max_tokens),
        positions=ints(max_tokens),
        query_start=ints(max_rows + 1),
        seq_lens=ints(max_rows),
        slots=ints(max_rows),
        row_flags=torch.zeros(max_rows, dtype=torch.uint8, device=place),
        logit_rows=ints(max_rows),
    )
