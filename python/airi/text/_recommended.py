"""How a checkpoint's makers would have it sampled."""

from __future__ import annotations

from pathlib import Path

from airi.errors import CheckpointError, RequestError
from airi.sampling_params import SamplingParams
from airi.text._files import read_json

__all__ = ["recommended_sampling"]

_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def recommended_sampling(folder: str | Path) -> dict[str, float]:
    """Fields of SamplingParams that generation_config.json sets; CheckpointError where a value is out of range."""
    file = Path(folder) / "generation_config.json"
    config = read_json(file)
    found = {name: config[name] for name in _FIELDS if config.get(name) is not None}
    if isinstance(found.get("top_k"), float) and found["top_k"].is_integer():
        found["top_k"] = int(found["top_k"])
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return found
