"""EngineOptions names what it does not accept, and survives the way to the engine process."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from airi.engine.options import EngineOptions, ModelOptions
from airi.errors import ConfigError


def options(**fields: Any) -> EngineOptions:
    return EngineOptions(**{"models": (ModelOptions(path="/models/a"),), **fields})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/llama", "llama"),
        ("models/llama/", "llama"),
        ("models/llama/../qwen", "qwen"),
        ("hf://org/llama", "llama"),
        ("hf://org/llama@main", "llama"),
    ],
)
def test_a_model_is_named_after_its_folder(path: str, name: str) -> None:
    assert ModelOptions(path=path).name == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", ()),
        ("device", "tpu"),
        ("backend", "magic"),
        ("dtype", "int3"),
        ("threads", 0),
        ("threads", 1025),
        ("kv_memory", -1),
        ("kv_fraction", 1.0),
        ("block_size", 12),
        ("block_size", 512),
        ("max_num_seqs", 0),
        ("max_num_seqs", 200_000_000),
        ("max_batch_tokens", True),
        ("max_batch_tokens", 2**31),
        ("max_model_len", 1.5),
        ("max_model_len", 1),
        ("max_model_len", 2**31),
        ("max_queued", 0),
        ("max_queued", 10**20),
        ("kv_memory", 2**63),
        ("admission", "never"),
        ("aging_s", 0.0),
        ("aging_s", 1e300),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        options(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("path", ""), ("weight", 0.0), ("kv_share", -1.0), ("max_model_len", 2**40), ("dtype", "x")],
)
def test_a_models_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        ModelOptions(**{"path": "/m", field: value})


def test_two_models_of_one_name_are_refused() -> None:
    models = (ModelOptions(path="/a/m"), ModelOptions(path="/b/x", aliases=("m",)))
    with pytest.raises(ConfigError, match="'m' is given twice"):
        options(models=models)


def test_options_survive_json() -> None:
    given = options(
        models=(ModelOptions(path="/a", aliases=("b",), weight=2.0),), kv_memory=2**30, aging_s=None
    )
    assert msgspec.json.decode(msgspec.json.encode(given), type=EngineOptions) == given
