"""Drives a model of the cuda backend on the host, where plain torch stands in for kernels, as a `LoadedModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airi.engine.backends import KvBinding, LoadOptions, ModelInfo, StepInputs
from airi.engine.backends.cuda.attention import Limits
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.backends.cuda.interface import CudaBinding, CudaStep, DeviceBatch
from airi.engine.backends.cuda.model import CudaBackend, CudaDecoder
from airi.engine.backends.cuda.ops import Ops


def allocate_batch(max_rows: int, max_tokens: int) -> DeviceBatch:
    def ints(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    return DeviceBatch(
        tokens=ints(max_tokens),
        positions=ints(max_tokens),
        query_start=ints(max_rows + 1),
        seq_lens=ints(max_rows),
        slots=ints(max_rows),
        row_flags=torch.zeros(max_rows, dtype=torch.uint8),
        logit_rows=ints(max_rows),
    )


class HostModel:
    """A `LoadedModel` around a `CudaDecoder` on `CpuDevice`: what its runner does with metadata, done here."""

    def __init__(self, decoder: CudaDecoder, *, max_rows: int = 512, capture: bool = False) -> None:
        self.decoder = decoder
        self._max_rows = max_rows
        self._capture = capture

    @property
    def info(self) -> ModelInfo:
        return self.decoder.info

    @property
    def max_tokens(self) -> int:
        """Of a step, once bound."""
        return self._batch.max_tokens

    def bytes_per_block(self, block_size: int) -> int:
        return self.decoder.bytes_per_block(block_size)

    def bind_kv(self, binding: KvBinding) -> None:
        self._batch = allocate_batch(self._max_rows, max(binding.max_batch_tokens, self._max_rows))
        with torch.inference_mode():
            self.decoder.bind(
                CudaBinding(
                    arena=torch.from_numpy(binding.arena),
                    block_size=binding.block_size,
                    block_table=torch.from_numpy(binding.block_table),
                    batch=self._batch,
                )
            )
            if self._capture:
                before = binding.arena.copy()
                self.decoder.capture(None)
                np.testing.assert_array_equal(binding.arena, before)

    def forward(self, step: StepInputs) -> NDArray[np.float32]:
        batch, tokens, rows = self._batch, len(step.tokens), len(step.seq_lens)
        fill(batch.tokens, step.tokens)
        fill(batch.positions, step.positions)
        fill(batch.query_start, step.query_start, rest=tokens)
        for target, values in ((batch.seq_lens, step.seq_lens), (batch.slots, step.slots)):
            fill(target, values, rest=0)
        # Logits of more tokens than there are rows are asked for afterwards, as a runner does.
        asked = step.logit_rows if len(step.logit_rows) <= self._max_rows else step.logit_rows[:0]
        fill(batch.logit_rows, asked, rest=0)
        with torch.inference_mode():
            out = self.decoder.enqueue(
                CudaStep(
                    num_rows=rows,
                    num_tokens=tokens,
                    num_logits=len(asked),
                    query_start=step.query_start,
                    seq_lens=step.seq_lens,
                )
            )
        return self.logits(step.logit_rows) if len(asked) < len(step.logit_rows) else out.numpy()

    def logits(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = self.decoder.logits(torch.from_numpy(rows)).numpy()
        return found


def fill(target: torch.Tensor, values: NDArray[Any], rest: int | None = None) -> None:
    """Writes values to the front and `rest`, if given, behind them."""
    target[: len(values)] = torch.from_numpy(values)
    if rest is not None:
        target[len(values) :] = rest


def load(
    path: Path,
    *,
    ops: Ops | None = None,
    limits: Limits | None = None,
    max_rows: int = 512,
    capture: bool = False,
    **options: Any,
) -> HostModel:
    backend = CudaBackend(CpuDevice(), ops=ops, limits=limits)
    return HostModel(backend.load_model(path, LoadOptions(**options)), max_rows=max_rows, capture=capture)
