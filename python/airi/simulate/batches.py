"""Requests of a trace in columns, and what can be done to a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Stream", "copied", "limited", "repeated", "sped_up", "with_root_tenants"]

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

PIECE_ROWS = 8192
"""Rows of a batch as it is read or fed: enough for columns to be worth it."""
_COPY_STEP = 0x278DDE6E5FD29F05
"""2^62 over the golden ratio: ids below 10^12 are that far from those of a million copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some requests in order of arrival, one row each.

    The prompt of row i consists of parts[part_start[i]:part_start[i + 1]], each an id of a stretch of tokens:
    equal leading ids are equal prefixes. What they do not cover is the request's own.
    """

    arrival_us: Int64
    tenant: Int64
    band: Int32
    input_tokens: Int32
    output_tokens: Int32
    part_start: Int64
    """[rows + 1]"""
    parts: Int64

    def __len__(self) -> int:
        return len(self.arrival_us)

    def take(self, order: Int64) -> Batch:
        """The rows of these numbers, in this order."""
        lengths = np.diff(self.part_start)[order]
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # Position in the result, shifted to where the row's parts are here.
        shift = np.repeat(self.part_start[:-1][order] - start[:-1], lengths)
        return Batch(
            arrival_us=self.arrival_us[order],
            tenant=self.tenant[order],
            band=self.band[order],
            input_tokens=self.input_tokens[order],
            output_tokens=self.output_tokens[order],
            part_start=start,
            parts=self.parts[np.arange(start[-1]) + shift],
        )

    def shifted(self, micros: int) -> Batch:
        """The same, arriving so much later."""
        return replace(self, arrival_us=self.arrival_us + micros)


Stream = Callable[[], Iterable[Batch]]
"""Gives the batches of a trace from its beginning, as often as it is called."""


def joined(batches: list[Batch]) -> Batch:
    """All rows of some batches."""
    starts = [np.zeros(1, np.int64)]
    parts = 0
    for batch in batches:
        starts.append(batch.part_start[1:] + parts)
        parts += len(batch.parts)
    return Batch(
        arrival_us=np.concatenate([b.arrival_us for b in batches]),
        tenant=np.concatenate([b.tenant for b in batches]),
        band=np.concatenate([b.band for b in batches]),
        input_tokens=np.concatenate([b.input_tokens for b in batches]),
        output_tokens=np.concatenate([b.output_tokens for b in batches]),
        part_start=np.concatenate(starts),
        parts=np.concatenate([b.parts for b in batches]),
    )


def in_pieces(batch: Batch, rows: int) -> Iterator[Batch]:
    """The same in batches of so many rows."""
    if len(batch) <= rows:
        yield batch
        return
    for start in range(0, len(batch), rows):
        yield batch.take(np.arange(start, min(start + rows, len(batch))))


def limited(stream: Stream, requests: int) -> Stream:
    """The first so many requests."""

    def batches() -> Iterator[Batch]:
        left = requests
        for batch in stream():
            if len(batch) >= left:
                yield batch.take(np.arange(left))
                return
            left -= len(batch)
            yield batch

    return batches


def sped_up(stream: Stream, factor: float) -> Stream:
    """The same requests in a `factor`th of the time."""

    def batches() -> Iterator[Batch]:
        for batch in stream():
            yield replace(batch, arrival_us=np.rint(batch.arrival_us / factor).astype(np.int64))

    return batches


def repeated(stream: Stream, times: int) -> Stream:
    """The trace `times` times, one after the other, a mean gap between them."""

    def batches() -> Iterator[Batch]:
        shift = 0
        for _ in range(times):
            rows, last = 0, 0
            for batch in stream():
                rows += len(batch)
                last = int(batch.arrival_us[-1])
                yield batch.shifted(shift)
            shift += last + last // max(rows - 1, 1)

    return batches


def copied(stream: Stream, copies: int) -> Stream:
    """Every request `copies` times, spread evenly over the time until the next one arrives.

    The copies of a trace share prefixes as it does, but none with each other.
    """

    def spread(batch: Batch, next_us: int) -> Batch:
        rows = batch.take(np.repeat(np.arange(len(batch)), copies))
        number = np.tile(np.arange(copies), len(batch))
        gaps = np.repeat(np.diff(np.append(batch.arrival_us, next_us)), copies)
        lengths = np.diff(rows.part_start)
        return replace(
            rows,
            arrival_us=rows.arrival_us + gaps * number // copies,
            parts=(rows.parts + np.repeat(number, lengths) * _COPY_STEP) & (2**62 - 1),
        )

    def batches() -> Iterator[Batch]:
        held: Batch | None = None
        for batch in stream():
            for piece in in_pieces(batch, max(PIECE_ROWS // copies, 1)):
                if held is not None:
                    yield spread(held, int(piece.arrival_us[0]))
                held = piece
        if held is not None:
            yield spread(held, int(held.arrival_us[-1]))

    return batches


def with_root_tenants(stream: Stream, tenants: int) -> Stream:
    """Tenants by the first part of the prompt, modulo `tenants`; requests without parts keep theirs."""

    def batches() -> Iterator[Batch]:
        for batch in stream():
            has_parts = np.diff(batch.part_start) > 0
            tenant = batch.tenant.copy()
            tenant[has_parts] = batch.parts[batch.part_start[:-1][has_parts]] % tenants
            yield replace(batch, tenant=tenant)

    return batches
