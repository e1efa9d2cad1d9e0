"""A step's metadata: pinned on the host, where the core writes it, and at fixed addresses on the device.

Everything of a step lies in one piece of memory, the same on both sides, so that one copy brings it over. There are
two pieces on the host, one per buffer set of the core: while the device reads one, the core writes the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.interface import DeviceBatch, TableChanges
from airi.engine.runner import StepArrays

if TYPE_CHECKING:
    import torch

__all__ = ["BatchBuffers", "SamplingColumns", "StagedArrays"]

_ALIGNED = 64
_LEAST_DELTAS = 16


class _Fields:
    """Named columns that lie one after the other in a piece of memory."""

    def __init__(self, columns: dict[str, tuple[Any, int]]) -> None:
        self._columns = columns
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        for name, (dtype, count) in columns.items():
            size = np.dtype(dtype).itemsize * count
            self._places[name] = at, at + size
            at += -(-size // _ALIGNED) * _ALIGNED
        self.nbytes = at

    def on_host(self, memory: torch.Tensor) -> dict[str, NDArray[Any]]:
        """numpy views of host memory."""
        raw: NDArray[np.uint8] = memory.numpy()
        return {
            name: raw[first:end].view(self._columns[name][0]) for name, (first, end) in self._places.items()
        }

    def on_device(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """torch views."""
        import torch

        dtypes = {
            np.uint8: torch.uint8,
            np.int32: torch.int32,
            np.int64: torch.int64,
            np.uint64: torch.int64,
            np.float32: torch.float32,
        }
        return {
            name: memory[first:end].view(dtypes[self._columns[name][0]])
            for name, (first, end) in self._places.items()
        }


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """Of the rows that sample, in their order: numpy arrays in the host's piece, tensors in the device's."""

    slot: Any
    """int64"""
    draw: Any
    """int32 tokens that the request had before."""
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    seed: Any
    """uint64; on the device its bits as int64."""


@dataclass(slots=True)
class StagedArrays(StepArrays):
    """A buffer set in pinned memory, with what the runner adds to it. `ops`, ids and draws stay on the host."""

    staged: torch.Tensor
    """The piece that the columns lie in."""
    logit_rows: NDArray[np.int32]
    count: NDArray[np.int32]
    """[0]: how many deltas apply."""
    sampling: SamplingColumns
    pinned_deltas: torch.Tensor
    """int32 [n, 3], n a power of two; `deltas` is its first rows."""
    pinned_cleared: torch.Tensor
    """int32 [n, 2]"""
    cleared: NDArray[np.int32]
    """[n, 2], in `pinned_cleared`: which granules each delta has zeroed, (first, how many)."""
    results: torch.Tensor
    """Pinned, for what was sampled."""
    sampled: NDArray[np.int32]
    """[rows], in `results`."""
    status: NDArray[np.uint8]
    """[rows], in `results`."""
    _used: int = 0
    """Tokens that were written and not padded over."""

    def pad(self, rows: int, tokens: int, samples: int) -> None:
        """Makes what is beyond the step's rows and tokens what `DeviceBatch` promises."""
        self.query_start[rows + 1 :] = tokens
        for column in (self.seq_lens, self.slots, self.row_flags):
            column[rows:] = 0
        self.logit_rows[samples:] = 0
        self.tokens[tokens : self._used] = 0
        self.positions[tokens : self._used] = 0
        self._used = tokens


class BatchBuffers:
    """The device's piece, the host's two, and room for results. One for all models of a device.

    *Invariant*: no address changes once it is made.
    """

    def __init__(self, device: Device, max_rows: int, max_tokens: int) -> None:
        self._device = device
        self._max_rows = max_rows
        rows: dict[str, tuple[Any, int]] = {
            name: (dtype, max_rows)
            for dtype, names in (
                (np.int32, ("seq_lens", "slots", "logit_rows", "draw", "top_k")),
                (np.float32, ("temperature", "top_p", "min_p")),
            )
            for name in names
        }
        self._fields = _Fields(
            {
                "count": (np.int32, 1),
                "query_start": (np.int32, max_rows + 1),
                "slot": (np.int64, max_rows),
                "seed": (np.uint64, max_rows),
                **rows,
                "row_flags": (np.uint8, max_rows),
                "tokens": (np.int32, max_tokens),
                "positions": (np.int32, max_tokens),
            }
        )
        self._results = _Fields({"sampled": (np.int32, max_rows), "status": (np.uint8, max_rows)})
        with device.active():
            self._packed = device.zeros(self._fields.nbytes)
            columns = self._fields.on_device(self._packed)
            self._packed_results = device.zeros(self._results.nbytes)
            results = self._results.on_device(self._packed_results)
        names = ("tokens", "positions", "query_start", "seq_lens", "slots", "row_flags", "logit_rows")
        self.batch = DeviceBatch(**{name: columns[name] for name in names})
        self.sampling = _sampling(columns)
        self.sampled: torch.Tensor = results["sampled"]
        """int32 [rows] on the device."""
        self.status: torch.Tensor = results["status"]
        """uint8 [rows] on the device."""
        self._count: torch.Tensor = columns["count"]
        self._changes: TableChanges | None = None
        self._staged = [device.pinned(self._fields.nbytes) for _ in range(2)]
        self._apart: StagedArrays | None = None

    def arrays(self, deltas: int, ops: int) -> tuple[StagedArrays, ...]:
        """The buffer sets for the core, with room for so many deltas and memory operations.

        Those given before must not be used any more.
        """
        import torch

        least = max(_LEAST_DELTAS, 1 << (deltas - 1).bit_length())
        with self._device.active():
            deltas_of, cleared = (
                self._device.zeros(least * 4 * width).view(torch.int32).view(-1, width) for width in (3, 2)
            )
        self._changes = TableChanges(deltas_of, self._count, cleared)
        return tuple(self._set(staged, deltas, least, ops) for staged in self._staged)

    def apart(self) -> StagedArrays:
        """A further set, for steps that are not the core's."""
        if self._apart is None:
            self._apart = self._set(self._device.pinned(self._fields.nbytes), 1, _LEAST_DELTAS, 0)
        return self._apart

    @property
    def packed(self) -> torch.Tensor:
        """The device's piece: uint8, all of `batch` and `sampling`."""
        return self._packed

    def clear(self) -> None:
        """Enqueues that the device's piece holds nothing but padding."""
        self._packed.zero_()

    def _set(self, staged: torch.Tensor, deltas: int, least: int, ops: int) -> StagedArrays:
        import torch

        staged.zero_()
        columns = self._fields.on_host(staged)
        results = self._device.pinned(self._results.nbytes)
        sampled = self._results.on_host(results)
        pinned_deltas, pinned_cleared = (
            self._device.pinned(least * 4 * width).view(torch.int32).view(-1, width) for width in (3, 2)
        )
        return StagedArrays(
            request_ids=np.zeros(self._max_rows, np.int64),
            draw_index=np.zeros(self._max_rows, np.int32),
            deltas=pinned_deltas.numpy()[:deltas],
            ops=np.zeros((ops, 5), np.int64),
            staged=staged,
            sampling=_sampling(columns),
            pinned_deltas=pinned_deltas,
            pinned_cleared=pinned_cleared,
            cleared=pinned_cleared.numpy(),
            results=results,
            sampled=sampled["sampled"],
            status=sampled["status"],
            slots=columns["slots"],
            query_start=columns["query_start"],
            seq_lens=columns["seq_lens"],
            row_flags=columns["row_flags"],
            tokens=columns["tokens"],
            positions=columns["positions"],
            logit_rows=columns["logit_rows"],
            count=columns["count"],
        )

    def upload(self, arrays: StagedArrays) -> None:
        """Enqueues the copy of a padded set to the device."""
        self._packed.copy_(arrays.staged, non_blocking=True)

    def upload_changes(self, arrays: StagedArrays, count: int) -> TableChanges:
        """Enqueues the copy of the set's first deltas, and of what they have zeroed.

        Of few different shapes, as a kernel is compiled for some of them. The set's `count` must have been uploaded.
        """
        rows = max(_LEAST_DELTAS, 1 << (count - 1).bit_length())
        arrays.cleared[count:rows] = 0
        changes = self._first_changes(rows)
        changes.deltas.copy_(arrays.pinned_deltas[:rows], non_blocking=True)
        changes.cleared.copy_(arrays.pinned_cleared[:rows], non_blocking=True)
        return changes

    def no_changes(self) -> TableChanges:
        """Enqueues that nothing is to be cleared: changes of which none applies, where the device's piece is clear."""
        changes = self._first_changes(_LEAST_DELTAS)
        changes.cleared.zero_()
        return changes

    def _first_changes(self, rows: int) -> TableChanges:
        if self._changes is None:
            raise RuntimeError("there are no buffer sets yet")
        return TableChanges(self._changes.deltas[:rows], self._changes.count, self._changes.cleared[:rows])

    def download(self, arrays: StagedArrays) -> None:
        """Enqueues the copy of what was sampled to the set's results."""
        arrays.results.copy_(self._packed_results, non_blocking=True)


def _sampling(columns: dict[str, Any]) -> SamplingColumns:
    names = ("slot", "draw", "temperature", "top_k", "top_p", "min_p", "seed")
    return SamplingColumns(**{name: columns[name] for name in names})
