"""Replays a step log through the runtime, and says where it plans something else than was recorded."""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi._core.parts import StepTimeModel
from airi.engine.step_log import MAGIC, step_record
from airi.errors import ConfigError

__all__ = ["Replay", "replay"]

_LENGTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of a step log."""

    records: int
    steps: int
    requests: int
    difference: str | None
    """The first plan or answer that differs; None where all are the same, byte for byte."""
    is_cut: bool
    """Whether the file ends within a record, as after a crash; what is before it was replayed."""
    step_times: dict[int, tuple[StepTimeModel, NDArray[np.float64]]]
    """By model that ran: what the core has learnt of how long its steps take, and all of them, as StepTime.fit takes
    them."""


class _Records:
    """The records of a file. `cut` once it turned out to end within one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut = False
        self.read = 0

    def __iter__(self) -> Iterator[list[Any]]:
        decode = msgspec.msgpack.Decoder().decode
        try:
            with self.path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise ConfigError(f"{self.path}: it is no step log of this version", field="replay")
                while (data := self._next(file)) is not None:
                    self.read += 1
                    try:
                        record = decode(data)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise self.broken(str(error)) from None
                    if not isinstance(record, list) or not record:
                        raise self.broken("it is no record")
                    yield record
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}", field="replay") from None

    def _next(self, file: BinaryIO) -> bytes | None:
        head = file.read(_LENGTH)
        data = file.read(int.from_bytes(head, "little")) if len(head) == _LENGTH else b""
        if len(head) == _LENGTH and len(data) == int.from_bytes(head, "little"):
            return data
        self.cut = bool(head)
        return None

    def broken(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path} record {self.read}: {what}", field="replay")


class _Player:
    """A runtime that is told what a log says."""

    def __init__(self, runtime: dict[str, Any], models: list[dict[str, Any]], sets: int, shapes: Any) -> None:
        self._buffers = _buffers(sets, shapes)
        configs = [_core.ModelConfig(**_with_admission(model)) for model in models]
        self._runtime = _core.Runtime(_core.RuntimeConfig(**runtime), configs, self._buffers)
        self._planned: dict[int, tuple[int, tuple[float, float, float, float]]] = {}
        self._took: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
        self.steps = 0
        self.requests = 0

    def play(self, kind: str, fields: list[Any]) -> str | None:
        """Tells the runtime what one record says; returns what differs from what it answered then."""
        told: dict[str, Callable[..., str | None]] = {
            "submit": self.submit,
            "cancel": self.cancel,
            "set_tenant": self.set_tenant,
            "complete_transfers": self.complete_transfers,
            "set_kv_quota": self._runtime.set_kv_quota,
            "observe_step": self.observe_step,
            "add_model": self.add_model,
            "remove_model": self.remove_model,
            "sleep": self._runtime.sleep,
            "wake": self._runtime.wake,
            "confirm_moved": self._runtime.confirm_moved,
            "replace_buffers": self.replace_buffers,
            "step": self.step,
            "commit": self.commit,
        }
        return told[kind](*fields)

    def step_times(self) -> dict[int, tuple[StepTimeModel, NDArray[np.float64]]]:
        return {
            model: (self._runtime.step_time(model), np.array(took).reshape(-1, 5))
            for model, took in self._took.items()
        }

    def submit(self, spec: dict[str, Any], tokens: bytes, stop_ids: bytes, admit: int) -> str | None:
        self.requests += 1
        spec["salts"] = [(at, salt) for at, salt in spec["salts"]]
        found = self._runtime.submit(
            tokens=np.frombuffer(tokens, np.int32), stop_ids=np.frombuffer(stop_ids, np.int32), **spec
        )
        return _compared(f"submit of request {spec['request_id']}", int(found), admit)

    def cancel(self, request_id: int, found: bool) -> str | None:  # noqa: FBT001  # a field of the record
        return _compared(f"cancel of request {request_id}", self._runtime.cancel(request_id), found)

    def set_tenant(self, tenant: int, weight: float) -> str | None:
        self._runtime.set_tenant(tenant, weight)
        return None

    def complete_transfers(self, ids: bytes, ok: bytes, micros: bytes) -> None:
        self._runtime.complete_transfers(
            np.frombuffer(ids, np.int64), np.frombuffer(ok, np.bool_), np.frombuffer(micros, np.int64)
        )

    def observe_step(self, model: int, work: list[Any], micros: float) -> None:
        self._runtime.observe_step(model, tuple(work), micros)

    def add_model(self, model: dict[str, Any], index: int) -> str | None:
        found = self._runtime.add_model(_core.ModelConfig(**_with_admission(model)))
        return _compared("add_model", found, index)

    def remove_model(self, model: int, drains: bool) -> None:  # noqa: FBT001  # a field of the record
        self._runtime.remove_model(model, drains=drains)

    def replace_buffers(self, sets: int, shapes: Any) -> None:
        self._buffers = _buffers(sets, shapes)
        self._runtime.replace_buffers(self._buffers)

    def step(
        self, now_us: int, counts: dict[str, int] | None, digests: dict[str, bytes] | None
    ) -> str | None:
        info = self._runtime.step(now_us)
        self._runtime.drain_events()
        if info is None or counts is None or digests is None:
            planned = None if info is None else info.step_id
            return _compared("step", planned, None if counts is None else counts["step_id"])
        self.steps += 1
        self._planned[info.step_id] = info.model, _work(info, self._buffers[info.buffer])
        found, found_digests = step_record(info, self._buffers)
        name = f"step {counts['step_id']}"
        for key, value in counts.items():
            if difference := _compared(f"{name}: {key}", found.get(key), value):
                return difference
        differing = [key for key, digest in digests.items() if found_digests.get(key) != digest]
        return f"{name}: the contents of {', '.join(differing)} differ" if differing else None

    def commit(self, step_id: int, tokens: bytes, counts: bytes, status: bytes, device_us: int) -> str | None:
        self._runtime.commit(
            step_id,
            np.frombuffer(tokens, np.int32),
            np.frombuffer(counts, np.int32),
            np.frombuffer(status, np.uint8),
            device_us,
        )
        model, work = self._planned.pop(step_id)
        if work[1] > 0:  # some move blocks only
            self._took[model].extend((*work, device_us))
        self._runtime.drain_events()
        return None


def replay(path: str | os.PathLike[str], *, progress: Callable[[int, float], None] | None = None) -> Replay:
    """Tells a runtime what the log says; stops at the first plan that differs. Raises ConfigError.

    `progress` gets (requests, seconds of the recording's clock since its first step).
    """
    records = _Records(Path(path))
    player: _Player | None = None
    difference = None
    origin: int | None = None
    for kind, *fields in records:
        try:
            if player is None:
                if kind != "config":
                    raise records.broken(f"it is {kind!r} where config must be first")
                player = _Player(*fields)
                continue
            difference = player.play(kind, fields)
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, MemoryError, OverflowError) as error:
            what = str(error).splitlines() or [type(error).__name__]
            raise records.broken(what[0]) from None
        if difference is not None:
            difference = f"record {records.read}, {difference}"
            break
        if kind == "step" and progress is not None:
            origin = fields[0] if origin is None else origin
            progress(player.requests, (fields[0] - origin) / 1e6)
    if player is None:
        raise ConfigError(f"{path}: there is nothing in it", field="replay")
    return Replay(
        records=records.read,
        steps=player.steps,
        requests=player.requests,
        difference=difference,
        is_cut=records.cut,
        step_times=player.step_times(),
    )


def _buffers(sets: int, shapes: Any) -> list[_core.StepBuffers]:
    arrays = [
        {name: np.zeros(shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()} for _ in range(sets)
    ]
    return [_core.StepBuffers(**columns) for columns in arrays]


def _with_admission(model: dict[str, Any]) -> dict[str, Any]:
    return model | {"admission": _core.Admission(model["admission"])} if "admission" in model else model


def _compared(what: str, found: object, recorded: object) -> str | None:
    return None if found == recorded else f"{what} is {found}, recorded was {recorded}"


def _work(info: _core.StepInfo, arrays: _core.StepBuffers) -> tuple[float, float, float, float]:
    """What a step-time model wants to know of a step."""
    decodes, rows = info.num_decodes, info.num_rows
    context = int(arrays.seq_lens[:decodes].sum())
    chunks = np.diff(arrays.query_start[decodes : rows + 1]).astype(float)
    pairs = float((chunks * (arrays.seq_lens[decodes:rows] - chunks / 2)).sum())
    return info.num_tokens, rows, context, pairs
