"""Which vectors may be compared: those of one embedding space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airi.errors import RequestError

__all__ = ["Embedder", "EmbeddingSpace", "Vectors", "key_of", "query_vector", "space_vectors"]

Vectors = NDArray[np.float32]
_MAX_DIMENSION = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpace:
    """All that makes two vectors comparable. Where any of it differs, so does `key`, and the vectors never meet.

    Raises RequestError for a dimension or normalisation that there is not.
    """

    model: str
    """Digest of the embedder's weights."""
    tokenizer: str
    """Digest of its tokenizer.json."""
    pooling: str
    """`mean`, `cls`, `last`."""
    dimension: int
    normalisation: Literal["l2", "none"] = "l2"
    """`l2`: vectors have length 1 and scores are cosines; `none`: scores are dot products."""
    chunker: str = ""
    """How texts were cut before they were embedded."""
    key: str = field(init=False, repr=False)
    """SHA-256 of all other fields in a canonical form, hexadecimal."""

    def __post_init__(self) -> None:
        if not 1 <= self.dimension <= _MAX_DIMENSION:
            raise RequestError(
                f"dimension is {self.dimension}; it must be 1 to {_MAX_DIMENSION}", field="dimension"
            )
        if self.normalisation not in ("l2", "none"):
            raise RequestError(
                f"normalisation is {self.normalisation!r}; it must be 'l2' or 'none'", field="normalisation"
            )
        canonical = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        object.__setattr__(self, "key", hashlib.sha256(canonical.encode()).hexdigest())

    def describe(self) -> dict[str, Any]:
        """Its fields, as JSON has them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


class Embedder(Protocol):
    """Makes vectors of one space from texts."""

    @property
    def space(self) -> EmbeddingSpace:
        """That of its vectors."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[texts, dimension] float32, one row for each text."""


def key_of(space: EmbeddingSpace | str) -> str:
    """The key of a space, or the key that was given."""
    return space if isinstance(space, str) else space.key


def space_vectors(space: EmbeddingSpace, vectors: Any, ids: Sequence[str]) -> Vectors:
    """[rows, dimension] float32 in the space's normalisation, a copy.

    Raises RequestError for another shape, for numbers that are not finite, and for zeros where length 1 is asked for;
    it names the row.
    """
    try:
        with np.errstate(over="ignore"):
            found = np.array(vectors, dtype=np.float32, order="C")
    except (TypeError, ValueError):
        raise RequestError("vectors must be [rows, dimension] numbers", field="vectors") from None
    if not ids and found.size == 0:
        return np.empty((0, space.dimension), np.float32)
    if found.ndim != 2 or len(found) != len(ids):
        raise RequestError(
            f"vectors have the shape {found.shape}; there are {len(ids)} rows, each with one vector",
            field="vectors",
        )
    if found.shape[1] != space.dimension:
        raise RequestError(
            f"vectors of row {ids[0]!r} and others have {found.shape[1]} numbers; "
            f"those of space {space.key[:12]} have {space.dimension}",
            field="vectors",
        )
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, place = map(int, bad[0])
        raise RequestError(
            f"vectors[{row}][{place}] of row {ids[row]!r} is {found[row, place]}; it must be a finite float32",
            field=f"vectors[{row}]",
        )
    if space.normalisation == "none":
        return found
    lengths = np.sqrt(np.einsum("ij,ij->i", found, found, dtype=np.float64))
    zeros = np.flatnonzero(lengths == 0)
    if len(zeros):
        row = int(zeros[0])
        raise RequestError(
            f"vectors[{row}] of row {ids[row]!r} is all zeros; one of length 1 cannot be made of it",
            field=f"vectors[{row}]",
        )
    unit: Vectors = (found / lengths[:, None]).astype(np.float32)
    return unit


def query_vector(space: EmbeddingSpace, vector: Any) -> Vectors:
    """[dimension] float32 in the space's normalisation; RequestError names what is wrong with it."""
    found: Vectors = vector
    if type(found) is not np.ndarray or found.dtype != np.float32:
        try:
            with np.errstate(over="ignore"):
                found = np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError):
            raise RequestError("vector must be a list of numbers", field="vector") from None
    if found.shape != (space.dimension,):
        raise RequestError(
            f"vector has the shape {found.shape}; those of space {space.key[:12]} have ({space.dimension},)",
            field="vector",
        )
    squares = float(found @ found)
    if not squares < np.inf or squares == 0:  # rarely: overflow, nan, inf or zeros
        found = space_vectors(space, found[None], ["of the query"]).reshape(-1)
    elif space.normalisation == "l2":
        found = (found * np.float32(squares**-0.5)).astype(np.float32, copy=False)
    return np.ascontiguousarray(found)
