"""Log-probabilities of prompts on a device: enqueued behind the step that computed their tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from airi.engine.backends.cuda.batch import StagedArrays
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.interface import CudaModel
from airi.engine.backends.cuda.sampler import FetchedLogprobs
from airi.engine.backends.cuda.sampling_ops import SamplingOps
from airi.engine.requests import Feature, RequestState
from airi.engine.sampler import SlotParameters
from airi.errors import EngineDeadError

if TYPE_CHECKING:
    import torch

__all__ = ["PromptLogprobs"]

logger = logging.getLogger(__name__)

# Rows whose logits are made at a time: at most 64 MiB of them in float32.
_LOGITS_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Piece:
    """Entries of one prompt that are on their way."""

    row: int
    state: RequestState
    begin: int
    """Of the entries."""
    fetched: FetchedLogprobs
    length: int


@dataclass(slots=True)
class PromptLogprobs:
    """Those of one step."""

    pieces: list[_Piece] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    """Rows for which it failed, which fail alone."""

    @classmethod
    def enqueue(
        cls,
        device: Device,
        ops: SamplingOps,
        model: CudaModel,
        slots: SlotParameters,
        arrays: StagedArrays,
        rows: int,
    ) -> PromptLogprobs | None:
        """Takes those of prompt tokens whose predecessors the step computes; None where nobody asked."""
        features = slots.features(arrays.slots[:rows])
        wanted = np.flatnonzero(features & int(Feature.PROMPT_LOGPROBS)).tolist()
        if not wanted:
            return None
        found = cls()
        for row in wanted:
            state = slots.state(int(arrays.slots[row]))
            first, end = int(arrays.query_start[row]), int(arrays.query_start[row + 1])
            position = int(arrays.positions[first])
            try:
                found._enqueue_row(device, ops, model, row, state, first, position, end - first)
            except EngineDeadError:
                raise
            except Exception:
                logger.exception("prompt log-probabilities failed for request %d alone", state.request_id)
                found.failed.add(row)
        return found

    def _enqueue_row(
        self,
        device: Device,
        ops: SamplingOps,
        model: CudaModel,
        row: int,
        state: RequestState,
        first: int,
        position: int,
        count: int,
    ) -> None:
        """Of `count` tokens of the step from `first` on, the first of them at `position` of its sequence."""
        # Position p predicts prompt token p + 1; which of them are known already is looked at when they come.
        begin = max(position + 1, state.prompt_logprobs_from)
        end = min(position + count + 1, len(state.prompt))
        piece = max(1, _LOGITS_BYTES // (4 * model.info.vocab_size))
        for start in range(begin, end, piece):
            stop = min(end, start + piece)
            at = np.arange(start, stop, dtype=np.int32) + (first - position - 1)
            logits: torch.Tensor = model.logits(device.upload(at))
            tokens = device.upload(state.prompt[start:stop])
            gathered = ops.gather_logprobs(logits, tokens, state.params.prompt_logprobs or 0)
            fetched = FetchedLogprobs.enqueue(device, tokens, gathered)
            self.pieces.append(_Piece(row, state, start, fetched, stop - start))

    def finish(self) -> list[int]:
        """Appends what has come to the requests' entries, as far as it is new; the rows that failed."""
        for piece in self.pieces:
            entries = piece.state.prompt_logprobs
            count = piece.state.params.prompt_logprobs or 0
            # Chunks that are computed again after a preemption are known.
            known = len(entries) - piece.begin
            entries += [piece.fetched.row(index, count) for index in range(max(known, 0), piece.length)]
        return sorted(self.failed)
