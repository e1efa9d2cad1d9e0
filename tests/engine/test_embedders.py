"""Embedders that are decoders against transformers: last-token and mean pooling, batches of mixed lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from airi.engine.backends import LoadOptions
from airi.engine.backends.cpu_embedder import CpuEmbedder, gives_vectors, load_embedder
from airi.errors import ConfigError

from .encoder_folders import with_modules

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 96,
}
LENGTHS = [5, 1, 17, 64, 40, 3, 95, 16]
FAMILIES = [
    (LlamaForCausalLM, LlamaConfig),
    (LlamaModel, LlamaConfig),
    (MistralModel, MistralConfig),
    (Qwen2ForCausalLM, Qwen2Config),
    (Qwen3ForCausalLM, Qwen3Config),
    (Qwen3Model, Qwen3Config),
    (Gemma2ForCausalLM, Gemma2Config),
]


def saved(folder: Path, kind: type[PreTrainedModel], config: Any, **modules: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(config(**SMALL)).eval()
    model.save_pretrained(folder)
    with_modules(folder, **{"pooling": "lasttoken", "normalize": True, **modules})
    return model


def opened(folder: Path) -> CpuEmbedder:
    return load_embedder(folder, LoadOptions(dtype="float32"))


def texts(lengths: list[int] = LENGTHS) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, SMALL["vocab_size"], n).astype(np.int32) for n in lengths]


def forward(embedder: CpuEmbedder, batch: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
    starts = np.cumsum([0, *map(len, batch)]).astype(np.int32)
    return embedder.pool(np.concatenate(batch), starts)


def states(model: PreTrainedModel, text: npt.NDArray[np.int32]) -> torch.Tensor:
    with torch.inference_mode():
        found = model.base_model(torch.from_numpy(text).long()[None])
    state: torch.Tensor = found.last_hidden_state[0]
    return state


@pytest.mark.parametrize(("kind", "config"), FAMILIES)
def test_vectors_are_the_last_states_of_transformers(tmp_path: Path, kind: Any, config: Any) -> None:
    model, batch = saved(tmp_path, kind, config), texts()
    embedder = opened(tmp_path)
    for vector, text in zip(forward(embedder, batch), batch, strict=True):
        last = states(model, text)[-1]
        np.testing.assert_allclose(vector, last / last.norm(), atol=2e-6)
    info = embedder.info
    assert (info.task, info.vector_size, info.pooling, info.normalizes) == ("embed", 64, "last", True)
    assert info.max_model_len == SMALL["max_position_embeddings"] + 1


@pytest.mark.parametrize(("kind", "config"), FAMILIES[:1])
def test_the_mean_of_states_and_the_longest_text_are_read_from_modules(
    tmp_path: Path, kind: Any, config: Any
) -> None:
    model = saved(tmp_path, kind, config, pooling="mean_tokens", normalize=False, limit=32)
    embedder, batch = opened(tmp_path), texts([5, 20])
    assert embedder.info.max_model_len == 33
    for vector, text in zip(forward(embedder, batch), batch, strict=True):
        np.testing.assert_allclose(vector, states(model, text).mean(0), atol=5e-6)


def test_a_text_sees_nothing_of_its_batch_whatever_came_before(tmp_path: Path) -> None:
    saved(tmp_path, Qwen3ForCausalLM, Qwen3Config)
    embedder, batch = opened(tmp_path), texts()
    together = forward(embedder, batch)
    for place, text in enumerate(batch):
        np.testing.assert_allclose(forward(embedder, [text])[0], together[place], atol=1e-6)
    np.testing.assert_array_equal(forward(embedder, batch), together)


def test_a_checkpoint_of_the_network_alone_is_read(tmp_path: Path) -> None:
    """As Qwen3-Embedding's, whose config names the whole model and whose tensors have no prefix."""
    saved(tmp_path, Qwen3ForCausalLM, Qwen3Config)
    before, file = forward(opened(tmp_path), texts()), tmp_path / "model.safetensors"
    kept = {name: each for name, each in load_file(file).items() if name.startswith("model.")}
    save_file({name.removeprefix("model."): each for name, each in kept.items()}, file)
    np.testing.assert_array_equal(forward(opened(tmp_path), texts()), before)


def test_weights_in_bfloat16_are_computed_in_it_unless_told_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL)).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    with_modules(tmp_path, pooling="lasttoken", normalize=True)
    rough, fine = load_embedder(tmp_path, LoadOptions()), opened(tmp_path)
    assert (rough.info.dtype, fine.info.dtype) == ("bfloat16", "float32")
    likeness = (forward(rough, texts()) * forward(fine, texts())).sum(1)
    assert 0.999 < likeness.min() < 0.9999999


def test_a_decoder_without_modules_gives_tokens(tmp_path: Path) -> None:
    saved(tmp_path, LlamaForCausalLM, LlamaConfig)
    assert gives_vectors(tmp_path)
    (tmp_path / "modules.json").unlink()
    assert not gives_vectors(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        ("weightedmean_tokens", "pooling is pooling_mode_weightedmean_tokens; accepted is one of"),
        ("", "pooling is none; accepted is one of"),
    ],
)
def test_pooling_that_is_not_known_is_one_line(tmp_path: Path, pooling: str, told: str) -> None:
    saved(tmp_path, LlamaForCausalLM, LlamaConfig)
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(json.dumps({f"pooling_mode_{pooling}": bool(pooling)}))
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path)


def test_a_window_beyond_the_network_s_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path, LlamaForCausalLM, LlamaConfig)
    with pytest.raises(ConfigError, match=r"max_model_len is 98; .* supports at most 97"):
        load_embedder(tmp_path, LoadOptions(max_model_len=98))
