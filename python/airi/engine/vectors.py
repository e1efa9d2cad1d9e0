"""How the states of a text's tokens become one vector, as sentence-transformers' files beside a model say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airi.engine.config_json import JsonFields, read_json, read_json_if_present, read_json_objects
from airi.errors import ConfigError

__all__ = ["Pooling", "VectorSpec", "load_vector_spec", "pooled"]

Pooling = Literal["mean", "cls", "last"]

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpec:
    """What is made of tokens' states."""

    pooling: Pooling
    normalize: bool
    """Vectors get length 1."""
    max_tokens: int | None
    """Of one text, special tokens included; None: what the network takes."""
    matryoshka_dimensions: tuple[int, ...] | None
    """Sizes that vectors may be cut to; empty: any; None: none."""


def load_vector_spec(folder: Path, fields: JsonFields, hidden_size: int) -> VectorSpec:
    """By `modules.json`; without one the mean, not normalised, of texts as long as the network takes.

    `fields` are those of config.json. Raises CheckpointError or ConfigError.
    """
    matryoshka = _matryoshka(fields, hidden_size)
    path = folder / "modules.json"
    if not path.exists():
        return VectorSpec(pooling="mean", normalize=False, max_tokens=None, matryoshka_dimensions=matryoshka)
    modules = read_json_objects(path)
    kinds = {
        str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules
    }
    unknown = sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ConfigError(
            f"{path}: module {unknown[0]} is not supported; supported: Transformer, Pooling, Normalize"
        )
    limit = read_json_if_present(folder / "sentence_bert_config.json").get("max_seq_length")
    return VectorSpec(
        pooling=_pooling(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else "mean",
        normalize="Normalize" in kinds,
        max_tokens=limit if isinstance(limit, int) else None,
        matryoshka_dimensions=matryoshka,
    )


def pooled(states: NDArray[np.float32], starts: NDArray[np.int32], spec: VectorSpec) -> NDArray[np.float32]:
    """Vectors [R, hidden] of R texts; the states of text r are `states[starts[r]:starts[r + 1]]`."""
    match spec.pooling:
        case "cls":
            vectors = states[starts[:-1]]
        case "last":
            vectors = states[starts[1:] - 1]
        case "mean":
            vectors = np.add.reduceat(states, starts[:-1], axis=0)
            vectors /= np.diff(starts)[:, None].astype(np.float32)
    if spec.normalize:
        # As torch.nn.functional.normalize, which divides by 1e-12 at least.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    modes = sorted(name for name, on in config.items() if name.startswith("pooling_mode_") and on)
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ConfigError(
            f"{path}: pooling is {', '.join(modes) or 'none'}; accepted is one of {', '.join(_MODES)}"
        )
    return _MODES[modes[0]]


def _matryoshka(fields: JsonFields, hidden_size: int) -> tuple[int, ...] | None:
    """By the names that sentence-transformers' and vLLM's models have for it."""
    found = fields.values.get("matryoshka_dimensions")
    if found is None:
        return () if fields.values.get("is_matryoshka") is True else None
    if not isinstance(found, list) or not all(
        type(size) is int and 0 < size <= hidden_size for size in found
    ):
        raise fields.fail("matryoshka_dimensions", f"a list of numbers from 1 to hidden_size {hidden_size}")
    return tuple(sorted(found))
