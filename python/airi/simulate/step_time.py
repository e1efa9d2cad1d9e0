"""How long simulated steps take: presets, files, and the arithmetic behind the presets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi._core.parts import StepTimeModel
from airi.errors import ConfigError

__all__ = ["DEFAULT_PRESET", "PRESETS", "Hardware", "Piece", "Preset", "Shape", "StepTime", "roofline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Microseconds per step and per unit of each kind of work in it, and how steps lie around that."""

    step_us: float = 0.0
    token_us: float = 0.0
    """Per token."""
    seq_us: float = 0.0
    """Per sequence."""
    context_us: float = 0.0
    """Per token that a decode attends to."""
    pair_us: float = 0.0
    """Per pair of a prefilled token and one that it attends to."""
    ratios: tuple[float, ...] = ()
    """As a device that is shared or that throttles has it: evenly spaced quantiles of what a step takes over what is
    expected of it, ascending. None: every step takes just that."""

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= _MOST_US:
                raise ConfigError(
                    f"{name} is {value!r}; it must be a number from 0 to {_MOST_US:g}", field=name
                )
        if not isinstance(self.ratios, list | tuple) or not all(map(_is_number, self.ratios)):
            raise ConfigError("ratios must be a list of numbers", field="ratios")
        if list(self.ratios) != sorted(self.ratios) or any(not 0 < r <= _MOST_RATIO for r in self.ratios):
            raise ConfigError(
                f"ratios must be above 0, at most {_MOST_RATIO:g}, and ascending", field="ratios"
            )

    def as_tuple(self) -> tuple[float, float, float, float, float]:
        """The weights, as the core takes them."""
        return (self.step_us, self.token_us, self.seq_us, self.context_us, self.pair_us)


_WEIGHTS = tuple(field.name for field in fields(Piece) if field.name != "ratios")
_NUM_RATIOS = 64
_MOST_US = 1e9
_MOST_RATIO = 1e6


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step takes the larger of two pieces: what memory needs, and what arithmetic needs."""

    memory: Piece
    arithmetic: Piece
    source: str = ""
    """Where the figures come from."""

    @classmethod
    def from_model(cls, model: StepTimeModel, *, source: str = "") -> StepTime:
        """What a model expects of steps now, and how it has found them to lie around that of late."""
        ratios = tuple(model.ratio((i + 0.5) / _NUM_RATIOS) for i in range(_NUM_RATIOS))
        memory, arithmetic = (_piece_of(weights, ratios) for weights in model.pieces)
        return cls(memory=memory, arithmetic=arithmetic, source=source)

    @classmethod
    def fit(cls, model: StepTimeModel, steps: NDArray[np.float64], *, source: str = "") -> StepTime:
        """What a model has learnt, with all the steps around it and not only the last ones.

        steps: [n, 5] tokens, sequences, tokens of decode context, prefill pairs, and microseconds.
        """
        work = np.column_stack([np.ones(len(steps)), steps[:, :4]])
        expected = work @ np.array(model.pieces).T
        ratios = steps[:, 4] / expected.max(axis=1)
        shares = (np.arange(_NUM_RATIOS) + 0.5) / _NUM_RATIOS
        memory, arithmetic = (
            _piece_of(weights, tuple(np.quantile(of_piece, shares).tolist()) if len(of_piece) else ())
            for weights, of_piece in zip(
                model.pieces, (ratios[expected.argmax(axis=1) == i] for i in range(2)), strict=True
            )
        )
        return cls(memory=memory, arithmetic=arithmetic, source=source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StepTime:
        """Reads a file that `save` wrote; raises ConfigError naming it."""
        try:
            read = json.loads(Path(path).read_bytes())
            if not isinstance(read, dict) or not {"memory", "arithmetic"} <= read.keys():
                raise ConfigError("it must be an object with memory and arithmetic", field="step_time")
            return cls(
                memory=_read_piece(read["memory"], "memory"),
                arithmetic=_read_piece(read["arithmetic"], "arithmetic"),
                source=str(read.get("source", path)),
            )
        except OSError as error:
            raise ConfigError(f"step_time {path}: {error.strerror or error}", field="step_time") from None
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"step_time {path}: {error}", field="step_time") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def as_tuples(self) -> list[tuple[float, float, float, float, float]]:
        """The weights, as the core takes them."""
        return [self.memory.as_tuple(), self.arithmetic.as_tuple()]


def _piece_of(weights: Sequence[float], ratios: tuple[float, ...]) -> Piece:
    return Piece(**dict(zip(_WEIGHTS, weights, strict=True)), ratios=ratios)


def _read_piece(read: Any, name: str) -> Piece:
    names = [field.name for field in fields(Piece)]
    if not isinstance(read, dict) or not read.keys() <= set(names):
        raise ConfigError(f"{name} must be an object with some of {', '.join(names)}", field=name)
    ratios = read.get("ratios", ())
    return Piece(**read | {"ratios": tuple(ratios) if isinstance(ratios, list) else ratios})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator, as its data sheet has it (dense arithmetic)."""

    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second."""
    flops: dict[int, float]
    """Per second, by bytes of an operand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a model decides how much a step reads and computes."""

    params: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A step time, the tokens of KV that fit beside the weights, and what one of them takes."""

    step_time: StepTime
    kv_tokens: int
    kv_bytes_per_token: int


# Shares of the data sheet that large kernels reach, and what a step costs besides: round figures in the middle
# of what serving engines report, not measurements of this project. Calibrate on your own device for more.
_BANDWIDTH_SHARE = 0.75
_FLOPS_SHARE = 0.55
_STEP_US = 1000.0
_SEQ_US = 3.0
_MEMORY_SHARE = 0.9


def roofline(hardware: Hardware, shape: Shape, *, weight_bytes: int, source: str) -> Preset:
    """The step time that memory bandwidth and arithmetic allow; KV is held in 16 bits."""
    bandwidth = hardware.bandwidth * _BANDWIDTH_SHARE / 1e6
    flops = hardware.flops[weight_bytes] * _FLOPS_SHARE / 1e6
    attention_flops = hardware.flops[2] * _FLOPS_SHARE / 1e6
    weights = shape.params * weight_bytes
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    memory = Piece(step_us=_STEP_US + weights / bandwidth, seq_us=_SEQ_US, context_us=kv_bytes / bandwidth)
    arithmetic = Piece(
        step_us=_STEP_US,
        token_us=2 * shape.params / flops,
        seq_us=_SEQ_US,
        context_us=kv_bytes / bandwidth,
        pair_us=4 * shape.layers * shape.heads * shape.head_dim / attention_flops,
    )
    room = hardware.memory * _MEMORY_SHARE - weights
    return Preset(
        step_time=StepTime(memory=memory, arithmetic=arithmetic, source=source),
        kv_tokens=int(room / kv_bytes),
        kv_bytes_per_token=kv_bytes,
    )


_HARDWARE = {
    # NVIDIA's data sheets of the SXM modules, without sparsity.
    "h100": Hardware(memory=80e9, bandwidth=3.35e12, flops={1: 1979e12, 2: 989e12}),
    "h200": Hardware(memory=141e9, bandwidth=4.8e12, flops={1: 1979e12, 2: 989e12}),
}
_SHAPES = {
    "8b": Shape(params=8.0e9, layers=32, heads=32, kv_heads=8, head_dim=128),
    "70b": Shape(params=70.6e9, layers=80, heads=64, kv_heads=8, head_dim=128),
}
_CHOICES = (
    ("h200", "8b", "fp8"),
    ("h200", "8b", "bf16"),
    ("h200", "70b", "fp8"),
    ("h100", "8b", "fp8"),
    ("h100", "8b", "bf16"),
)

PRESETS = {
    f"{device}-{shape}-{dtype}": roofline(
        _HARDWARE[device],
        _SHAPES[shape],
        weight_bytes=1 if dtype == "fp8" else 2,
        source=f"computed from data sheets: one {device.upper()}, Llama 3 {shape.upper()} in {dtype}",
    )
    for device, shape, dtype in _CHOICES
}
"""By device, model and type of weights. Computed, not measured."""

DEFAULT_PRESET = "h200-8b-fp8"
