"""What a config.json says about layers: windows, sparse layers, rotary embeddings, defaults of a family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airi.engine.backends import LoadOptions, get_backend
from airi.engine.families import FAMILIES, parse_spec
from airi.errors import ConfigError

_BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def spec(family: str, **fields: Any) -> Any:
    return parse_spec({**_BASE, "architectures": [FAMILIES[family].architecture], **fields})


def windows(family: str, **fields: Any) -> list[int | None]:
    return [layer.window for layer in spec(family, **fields).layers]


def test_windows_follow_each_family_s_own_fields() -> None:
    assert windows("llama", sliding_window=8) == [None] * 6
    assert windows("mistral", sliding_window=8) == [8] * 6
    assert windows("mistral", sliding_window=None) == [None] * 6
    assert windows("phi3") == [None] * 6
    assert windows("qwen2", sliding_window=8, max_window_layers=4) == [None] * 6
    assert (
        windows("qwen3", sliding_window=8, max_window_layers=4, use_sliding_window=True)
        == [None] * 4 + [8] * 2
    )
    assert windows("qwen3_moe", sliding_window=8, use_sliding_window=True) == [8] * 6
    assert windows("gemma2", sliding_window=8) == [8, None] * 3
    assert windows("gemma3_text", sliding_window=8) == [8] * 5 + [None]
    assert windows("gemma3_text", sliding_window=8, sliding_window_pattern=3) == [8, 8, None] * 2


def test_layer_types_win_over_the_pattern() -> None:
    kinds = ["full_attention"] * 5 + ["sliding_attention"]
    assert windows("gemma2", sliding_window=8, layer_types=kinds) == [None] * 5 + [8]
    with pytest.raises(ConfigError, match=r"layer_types is .*; accepted: 6 entries"):
        spec("gemma2", layer_types=kinds[1:])
    with pytest.raises(ConfigError, match="each full_attention or sliding_attention"):
        spec("gemma2", layer_types=["linear_attention"] * 6)


def test_sparse_layers_follow_step_and_exceptions() -> None:
    def sparse(**fields: Any) -> list[int]:
        layers = spec("qwen3_moe", **fields).layers
        return [index for index, layer in enumerate(layers) if layer.moe]

    assert sparse() == [0, 1, 2, 3, 4, 5]
    assert sparse(decoder_sparse_step=2) == [1, 3, 5]
    assert sparse(mlp_only_layers=[0, 5]) == [1, 2, 3, 4]
    assert [layer.moe for layer in spec("mixtral").layers] == [True] * 6
    with pytest.raises(ConfigError, match="num_experts_per_tok is 5; accepted: at most num_local_experts 4"):
        spec("mixtral", num_experts_per_tok=5)


def test_gemma3_has_a_rotary_embedding_per_kind_of_layer_in_both_config_styles() -> None:
    old = spec(
        "gemma3_text",
        rope_theta=1e6,
        rope_local_base_freq=5e3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    new = spec(
        "gemma3_text",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    )
    assert old == new
    assert [rope.kind for rope in new.ropes] == ["linear", "default"]
    assert [layer.rope for layer in new.layers] == [1, 1, 1, 1, 1, 0]
    assert [rope.theta for rope in spec("gemma3_text").ropes] == [1e6, 1e4]


def test_phi3_reads_its_original_window_beside_rope_scaling() -> None:
    factors = [1.0] * 8
    rope = {"type": "su", "short_factor": factors, "long_factor": factors}
    found = spec("phi3", rope_scaling=rope, original_max_position_embeddings=64).ropes[0]
    assert (found.kind, found.original_max_position_embeddings, found.factor) == ("longrope", 64, 4.0)


def test_head_dim_and_embeddings_take_the_family_s_defaults() -> None:
    assert spec("llama").head_dim == 16
    assert spec("qwen3").head_dim == 128
    assert spec("gemma2").head_dim == 256
    assert spec("gemma2", head_dim=32).attention_scale == 32**-0.5
    assert spec("gemma2", query_pre_attn_scalar=144).attention_scale == 1 / 12
    assert spec("gemma2").tie_embeddings
    assert not spec("llama").tie_embeddings
    assert spec("gemma2").embed_scale == 8.0


def test_a_model_type_is_enough_when_architectures_is_absent() -> None:
    assert parse_spec({**_BASE, "model_type": "olmo2"}).family == "olmo2"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_dynamic_rope_is_clamped_to_its_window_and_refused_beyond(
    backend: str, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("llama-dynamic")
    window = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert get_backend(backend).load_model(folder, LoadOptions()).info.max_model_len == window
    with pytest.raises(
        ConfigError, match=rf"dynamic rope, supported inside its original window of {window} only"
    ):
        get_backend(backend).load_model(folder, LoadOptions(max_model_len=window + 1))
