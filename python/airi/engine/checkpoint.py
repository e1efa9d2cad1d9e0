"""Reads safetensors files in place: tensors are views of the mapped files, copied only by who packs them.

The format: 8 bytes little-endian header length, a JSON header of dtypes, shapes and offsets, the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airi.engine.config_json import read_json
from airi.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

StoredDtype = Literal["F32", "BF16", "F16"]
_NUMPY_DTYPES: dict[str, Any] = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}
_COMPARED = 16 << 20
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as stored. bfloat16 values are held as their 16 bits (uint16)."""

    name: str
    dtype: StoredDtype
    data: NDArray[Any]

    def rows(self, start: int, stop: int) -> RawTensor:
        """The rows [start, stop) as a view."""
        return RawTensor(self.name, self.dtype, self.data[start:stop])

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def float32(self) -> NDArray[np.float32]:
        """The values as float32: a view when they are stored so, else exactly converted."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)

    def bfloat16(self) -> NDArray[np.uint16]:
        """The bits of the values as bfloat16, rounded to nearest even; a view when they are stored so."""
        if self.dtype == "BF16":
            return self.data
        values = np.ascontiguousarray(self.float32())
        bits = values.view(np.uint32)
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
        # Rounding must not carry a NaN's low mantissa bits into an infinity.
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    nbytes: int


class Checkpoint:
    """The weights of a checkpoint folder. Opens every file at once, so a missing or cut one is found early.

    *Thread safety*: after construction all methods only read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"model folder {folder} does not exist")
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        for path in _weight_files(folder):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            header, data_start = _read_header(path, size)
            # Copy-on-write: torch refuses read-only memory, and nobody writes.
            self._maps[path] = np.memmap(path, np.uint8, mode="c")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        for name, value in header.items():
            if name != "__metadata__":
                self._entries[name] = _parse_entry(path, name, value, data_start, size)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def num_elements(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def holds_same(self, other: Checkpoint, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Whether both have the same tensors, bit by bit, however they are cut into files.

        Raises InterruptedError once it is `stopped`.
        """
        if {n: (e.dtype, e.shape) for n, e in self._entries.items()} != {
            n: (e.dtype, e.shape) for n, e in other._entries.items()
        }:
            return False
        for name, entry in self._entries.items():
            for at in range(0, entry.nbytes, _COMPARED):
                if stopped():
                    raise InterruptedError
                if not np.array_equal(self._bytes(name, at), other._bytes(name, at)):
                    return False
        return True

    def digest(self, *beside: Path) -> str:
        """SHA-256 of the weight files and of some beside them, hexadecimal. Raises CheckpointError."""
        whole = hashlib.sha256()
        for path in (*sorted(self._maps), *beside):
            try:
                with path.open("rb") as file:
                    own = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
            whole.update(f"{path.name}\0{own}\n".encode())
        return whole.hexdigest()

    def _bytes(self, name: str, at: int) -> NDArray[np.uint8]:
        entry = self._entries[name]
        start = entry.start + at
        return self._maps[entry.path][start : min(start + _COMPARED, entry.start + entry.nbytes)]

    def dtype(self, name: str) -> str | None:
        """The stored dtype of a tensor, None if there is no such tensor."""
        entry = self._entries.get(name)
        return entry.dtype if entry else None

    def tensor(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        """The tensor as a view; raises `CheckpointError` if missing, misshaped or of an unread dtype."""
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder}: tensor {name} is missing, expected shape {list(shape)}")
        if entry.shape != shape:
            raise CheckpointError(
                f"{self.folder}: tensor {name} has shape {list(entry.shape)}, "
                f"expected {list(shape)} from config.json"
            )
        if entry.dtype not in _NUMPY_DTYPES:
            raise CheckpointError(
                f"{self.folder}: tensor {name} is stored as {entry.dtype}; "
                f"accepted: {', '.join(_NUMPY_DTYPES)}"
            )
        dtype = np.dtype(_NUMPY_DTYPES[entry.dtype])
        stop = entry.start + math.prod(shape) * dtype.itemsize
        data = self._maps[entry.path][entry.start : stop]
        if data.ctypes.data % dtype.itemsize:
            data = data.copy()  # files of old writers may start their data at any byte
        # np.asarray drops the memmap subclass, whose slicing costs microseconds.
        return RawTensor(name, entry.dtype, np.asarray(data).view(dtype).reshape(shape))  # type: ignore[arg-type]


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    paths = [folder / name for name in shard_names(index)]
    for path in paths:
        if not path.exists():
            raise CheckpointError(f"{path} is missing; {INDEX_FILE} lists it")
    return paths


def shard_names(index: Path) -> list[str]:
    """The file names that a `model.safetensors.index.json` lists, sorted."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: field weight_map is missing or empty")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map names {name!r}; accepted: safetensors files beside the index"
            )
    return names


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset of the first data byte."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if len(prefix) < 8 or 8 + length > size:
            raise CheckpointError(f"{path} is truncated: {size} bytes do not hold the header")
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file: header of {length} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    return header, 8 + length


def _parse_entry(path: Path, name: str, value: Any, data_start: int, size: int) -> _Entry:
    try:
        dtype, shape = str(value["dtype"]), tuple(int(dim) for dim in value["shape"])
        begin, end = (int(offset) for offset in value["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: the header's entry of {name} cannot be read") from None
    if data_start + end > size:
        raise CheckpointError(f"{path} is truncated: tensor {name} ends at byte {data_start + end} of {size}")
    itemsize = np.dtype(_NUMPY_DTYPES[dtype]).itemsize if dtype in _NUMPY_DTYPES else None
    if begin < 0 or begin > end or (itemsize is not None and end - begin != math.prod(shape) * itemsize):
        found = f"tensor {name} {dtype} {list(shape)} spans {end - begin} bytes"
        raise CheckpointError(f"{path} is damaged: {found}")
    return _Entry(path, dtype, shape, data_start + begin, end - begin)
