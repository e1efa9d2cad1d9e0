"""The operations of sampling on a device: one interface, Triton kernels behind it or the host's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from airi._core import cpu
from airi.engine.backends.cuda.batch import SamplingColumns
from airi.engine.backends.cuda.device import Device
from airi.kernels.token_counts import IN_PROMPT, ONE_OUTPUT

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceSamplingOps",
    "GatheredLogprobs",
    "HostSamplingOps",
    "Penalties",
    "SamplingOps",
    "TorchSamplingOps",
    "sampling_ops_for",
]


@dataclass(frozen=True, slots=True)
class Penalties:
    """Rows of logits that are penalised, and by what. On the device, [n] each."""

    rows: torch.Tensor
    """int32 rows of the logits."""
    lines: torch.Tensor
    """int32 lines of the counts."""
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor


@dataclass(frozen=True, slots=True)
class GatheredLogprobs:
    """Of n rows, on the device."""

    logprobs: torch.Tensor
    """float32 [n]"""
    ranks: torch.Tensor
    """int32 [n], from 1"""
    top_ids: torch.Tensor
    """int32 [n, count]"""
    top_logprobs: torch.Tensor
    """float32 [n, count]"""


class SamplingOps(Protocol):
    """What becomes of logits [n, vocab] of float32, bfloat16 or float16. Nothing waits for the device."""

    def prepare(self, max_rows: int, vocab_size: int) -> None:
        """Takes the memory that sampling of so many rows needs."""
        ...

    def sample(
        self, logits: torch.Tensor, columns: SamplingColumns, out: torch.Tensor, status: torch.Tensor
    ) -> None:
        """Token and status (1: the logits hold NaN) of each row into the first n of `out` and `status`."""
        ...

    def start_counts(
        self, counts: torch.Tensor, line: int, prompt: torch.Tensor, generated: torch.Tensor
    ) -> None:
        """Makes a line of counts [lines, vocab] that of a request with these tokens [n] int32, some of them maybe none:
        `IN_PROMPT`, plus `ONE_OUTPUT` for each time that one was generated."""
        ...

    def count_tokens(self, counts: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts one more generated token [n] int32 of each of these lines [n] int32."""
        ...

    def penalise(self, logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> None:
        """Changes rows of logits by what counts [lines, vocab] say of their tokens."""
        ...

    def add_to_logits(
        self, logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """logits[rows[i], ids[i]] += values[i], each pair once; minus infinity bans a token."""
        ...

    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
        """Bans the tokens that int32 masks [n, words] have no bit of from rows [n] int32 of the logits."""
        ...

    def gather_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, count: int) -> GatheredLogprobs:
        """Log-probability and rank of a token [n] int32 of each row, and the likeliest ones."""
        ...


class TorchSamplingOps:
    """What few rows ask for, in plain torch, and without waiting for a device."""

    def start_counts(
        self, counts: torch.Tensor, line: int, prompt: torch.Tensor, generated: torch.Tensor
    ) -> None:
        """As `SamplingOps.start_counts`."""
        counts[line].zero_()
        counts[line].index_fill_(0, prompt.long(), IN_PROMPT)
        self.count_tokens(counts, generated.new_full(generated.shape, line), generated)

    def count_tokens(self, counts: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor) -> None:
        """As `SamplingOps.count_tokens`."""
        counts.index_put_((lines.long(), tokens.long()), counts.new_full((), ONE_OUTPUT), accumulate=True)

    def penalise(self, logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> None:
        """As `SamplingOps.penalise`."""
        import torch

        rows = penalties.rows.long()
        lines, seen = logits[rows].float(), counts[penalties.lines.long()]
        repetition = penalties.repetition[:, None]
        repeated = torch.where(lines > 0, lines / repetition, lines * repetition)
        lines = torch.where(seen > 0, repeated, lines)
        outputs = seen.div(ONE_OUTPUT, rounding_mode="floor")
        lines -= penalties.frequency[:, None] * outputs + penalties.presence[:, None] * (outputs > 0)
        logits.index_copy_(0, rows, lines.to(logits.dtype))

    def add_to_logits(
        self, logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """As `SamplingOps.add_to_logits`."""
        logits[rows.long(), ids.long()] += values

    def gather_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, count: int) -> GatheredLogprobs:
        """As `SamplingOps.gather_logprobs`."""
        import torch

        logprobs = torch.log_softmax(logits.float(), -1)
        chosen = logprobs.gather(-1, tokens.long()[:, None])
        top = logprobs.topk(count, -1)
        ranks = (logprobs > chosen).sum(-1, dtype=torch.int32) + 1
        return GatheredLogprobs(chosen[:, 0], ranks, top.indices.to(torch.int32), top.values)


class DeviceSamplingOps(TorchSamplingOps):
    """On a device: kernels."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._workspaces: dict[int, Any] = {}
        """By vocabulary."""

    def prepare(self, max_rows: int, vocab_size: int) -> None:
        """As `SamplingOps.prepare`."""
        from airi.kernels.sample import SampleWorkspace

        if vocab_size not in self._workspaces:
            place = self._device.torch_device
            self._workspaces[vocab_size] = SampleWorkspace.allocate(place, max_rows, vocab_size)

    def sample(
        self, logits: torch.Tensor, columns: SamplingColumns, out: torch.Tensor, status: torch.Tensor
    ) -> None:
        """As `SamplingOps.sample`."""
        from airi.kernels.sample import sample

        sample(
            logits,
            temperature=columns.temperature,
            top_k=columns.top_k,
            top_p=columns.top_p,
            min_p=columns.min_p,
            seeds=columns.seed,
            draws=columns.draw,
            out_tokens=out,
            out_status=status,
            workspace=self._workspaces[logits.shape[-1]],
        )

    def start_counts(
        self, counts: torch.Tensor, line: int, prompt: torch.Tensor, generated: torch.Tensor
    ) -> None:
        """As `SamplingOps.start_counts`."""
        from airi.kernels.logits import start_counts

        start_counts(counts, line, prompt, generated)

    def count_tokens(self, counts: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor) -> None:
        """As `SamplingOps.count_tokens`."""
        from airi.kernels.logits import count_tokens

        count_tokens(counts, lines, tokens)

    def penalise(self, logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> None:
        """As `SamplingOps.penalise`."""
        from airi.kernels.logits import penalise

        penalise(
            logits,
            penalties.rows,
            penalties.lines,
            counts,
            repetition=penalties.repetition,
            presence=penalties.presence,
            frequency=penalties.frequency,
        )

    def add_to_logits(
        self, logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """As `SamplingOps.add_to_logits`."""
        from airi.kernels.logits import edit_logits

        edit_logits(logits, rows, ids, values)

    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
        """As `SamplingOps.mask_tokens`."""
        from airi.kernels.token_masks import mask_tokens

        mask_tokens(logits, rows, masks)

    def gather_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, count: int) -> GatheredLogprobs:
        """As `SamplingOps.gather_logprobs`."""
        from airi.kernels.logits import MAX_TOP, gather_logprobs

        if count > MAX_TOP:
            return super().gather_logprobs(logits, tokens, count)
        return GatheredLogprobs(*gather_logprobs(logits, tokens, count))


class HostSamplingOps(TorchSamplingOps):
    """On the host, with the kernels of the CPU engine: the same tokens to the bit. Logits are float32."""

    def prepare(self, max_rows: int, vocab_size: int) -> None:
        """As `SamplingOps.prepare`."""

    def sample(
        self, logits: torch.Tensor, columns: SamplingColumns, out: torch.Tensor, status: torch.Tensor
    ) -> None:
        """As `SamplingOps.sample`."""
        rows, vocab = logits.shape
        parameters = (
            columns.temperature,
            columns.top_k,
            columns.top_p,
            columns.min_p,
            columns.seed,
            columns.draw,
        )
        addresses = (column.data_ptr() for column in (*parameters, out, status))
        cpu.sample(logits.data_ptr(), rows, vocab, *addresses)

    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
        """As `SamplingOps.mask_tokens`."""
        vocab, words = logits.shape[1], masks.shape[1]
        for row, mask in zip(rows.tolist(), masks, strict=True):
            cpu.apply_token_mask(logits[row].data_ptr(), vocab, mask.data_ptr(), words)

    def gather_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, count: int) -> GatheredLogprobs:
        """As `SamplingOps.gather_logprobs`."""
        import torch

        rows, vocab = logits.shape
        logprobs, ranks = np.empty(rows, np.float32), np.empty(rows, np.int32)
        top_ids, top_logprobs = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
        cpu.log_softmax_gather(
            logits.data_ptr(),
            rows,
            vocab,
            tokens.data_ptr(),
            logprobs.ctypes.data,
            ranks.ctypes.data,
            count,
            top_ids.ctypes.data if count else 0,
            top_logprobs.ctypes.data if count else 0,
        )
        return GatheredLogprobs(*map(torch.from_numpy, (logprobs, ranks, top_ids, top_logprobs)))


def sampling_ops_for(device: Device) -> SamplingOps:
    """The operations for a device: kernels, or the host's own."""
    return HostSamplingOps() if device.is_host else DeviceSamplingOps(device)
