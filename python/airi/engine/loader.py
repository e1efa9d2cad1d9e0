"""What all backends share of loading: read the folder, settle dtype and context length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airi.engine.backends import ComputeDtype, LoadOptions, ModelInfo, ProgressCallback
from airi.engine.checkpoint import Checkpoint
from airi.engine.config_json import JsonFields, read_json_if_present
from airi.engine.decoder import DecoderWeights
from airi.engine.families import load_spec
from airi.engine.rope import context_limit
from airi.engine.spec import DecoderSpec
from airi.errors import CheckpointError, ConfigError

_STORED: dict[str, ComputeDtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DTYPES: dict[str, ComputeDtype] = {name: name for name in _STORED.values()}
_SCALE_BYTES = 4
"""Of a head's quantised key or value of one token."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A checkpoint folder whose config is understood and whose files are mapped."""

    spec: DecoderSpec
    weights: DecoderWeights
    info: ModelInfo


def open_model(folder: Path, options: LoadOptions, *, on_device: bool = False) -> OpenedModel:
    """Opens a Hugging Face checkpoint folder; raises `CheckpointError` or `ConfigError`.

    `on_device`: whether the backend computes in float16, and knows the options that are for devices. Else float16
    becomes bfloat16, and those options are refused.
    """
    if not on_device:
        refuse_device_options(options)
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
    spec = load_spec(folder)
    max_model_len = _max_model_len(spec, options, folder)
    checkpoint = Checkpoint(folder)
    weights = DecoderWeights(spec, checkpoint)
    dtype = _compute_dtype(spec, weights, options.dtype)
    if dtype == "float16" and not on_device:
        dtype = "bfloat16"
    generation_path = folder / "generation_config.json"
    generation = read_json_if_present(generation_path)
    fields = JsonFields(generation, str(generation_path))
    # A text-only cut of a larger model may still name ids that it has no logits for.
    ends = fields.integers("eos_token_id") or spec.eos_token_ids
    info = ModelInfo(
        path=folder,
        family=spec.family,
        dtype=dtype,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_model_len=max_model_len,
        kv_bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * _head_bytes(spec, dtype, options),
        num_parameters=checkpoint.num_elements,
        eos_token_ids=tuple(i for i in ends if 0 <= i < spec.vocab_size),
        bos_token_id=spec.bos_token_id,
        kv_cache_dtype=options.kv_cache_dtype,
        generation_config=generation,
    )
    return OpenedModel(spec, weights, info)


def refuse_device_options(options: LoadOptions) -> None:
    """Raises ConfigError for options that only devices know."""
    for name, default in (("kv_cache_dtype", "auto"), ("quantization", None), ("tensor_parallel_size", 1)):
        value = getattr(options, name)
        if value != default:
            raise ConfigError(f"{name} is {value!r}; on CPUs it must be {default!r}", field=name)


def _max_model_len(spec: DecoderSpec, options: LoadOptions, folder: Path) -> int:
    limit = min(context_limit(rope) for rope in spec.ropes)
    wanted = options.max_model_len
    if wanted is None or wanted <= limit:
        return wanted or limit
    if any(rope.kind == "dynamic" for rope in spec.ropes):
        raise ConfigError(
            f"max_model_len is {wanted}; {folder} uses dynamic rope, supported inside its original window "
            f"of {limit} only (beyond it the keys already cached would be wrong)"
        )
    raise ConfigError(f"max_model_len is {wanted}; {folder} supports at most {limit}")


def _compute_dtype(spec: DecoderSpec, weights: DecoderWeights, wanted: str) -> ComputeDtype:
    if wanted == "auto":
        # The bulk of the weights decides when config.json is silent.
        stored = _STORED.get(weights.embedding().dtype)
        wanted = spec.checkpoint_dtype or stored or "float32"
    return _DTYPES.get(wanted, "bfloat16")


def _head_bytes(spec: DecoderSpec, dtype: ComputeDtype, options: LoadOptions) -> int:
    """Bytes of one head's key or value of one token."""
    if options.kv_cache_dtype != "auto":
        return spec.head_dim + _SCALE_BYTES
    return spec.head_dim * (4 if dtype == "float32" else 2)


class LoadProgress:
    """Counts bytes of weights taken over and tells a callback; a callback of None costs nothing."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self._done = 0
        self._total = total
        self._callback = callback

    def add(self, nbytes: int) -> None:
        """Counts `nbytes` more; never beyond the total."""
        self._report(min(self._done + nbytes, self._total))

    def finish(self) -> None:
        """Reports everything as loaded (a tensor that no layer uses is never counted by `add`)."""
        if self._done < self._total:
            self._report(self._total)

    def _report(self, done: int) -> None:
        self._done = done
        if self._callback is not None:
            self._callback(self._done, self._total)
