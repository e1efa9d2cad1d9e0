"""Rotary embeddings against transformers' own tables, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from airi.engine.families import parse_spec
from airi.engine.rope import context_limit, cos_sin_table
from airi.errors import ConfigError

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 512,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_LONG = {"short_factor": [1.0 + i / 64 for i in range(64)], "long_factor": [1.0 + i / 8 for i in range(64)]}
_ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn by lengths": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn not truncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "truncate": False,
        "original_max_position_embeddings": 1024,
    },
    "yarn with a factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 1.3,
        "original_max_position_embeddings": 1024,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 1024,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 1024, **_LONG},
}


def spec(rope: dict[str, Any]) -> Any:
    return parse_spec({**_CONFIG, "rope_parameters": {"rope_theta": 10000.0, **rope}}).ropes[0]


@pytest.mark.parametrize("name", _ROPES)
def test_tables_are_those_of_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_theta": 10000.0, **_ROPES[name]}
    fields = {key: value for key, value in _CONFIG.items() if key != "architectures"}
    embedding = LlamaRotaryEmbedding(LlamaConfig(**fields, rope_parameters=dict(rope)))
    length = 4096
    cos, sin = embedding(torch.zeros(1), torch.arange(length)[None])
    table = cos_sin_table(spec(rope), length)
    # A frequency is a float32 here and there; one rounding step of it grows with the position.
    np.testing.assert_allclose(table[:, :64], cos[0, :, :64].numpy(), atol=2e-3)
    np.testing.assert_allclose(table[:, 64:], sin[0, :, :64].numpy(), atol=2e-3)
    np.testing.assert_allclose(
        table[:200], torch.cat([cos, sin], -1)[0, :200, [*range(64), *range(128, 192)]], atol=1e-4
    )


def test_longrope_uses_short_factors_inside_its_original_window() -> None:
    rope = spec(_ROPES["longrope"])
    short, long = cos_sin_table(rope, 1024), cos_sin_table(rope, 1025)
    angle = 1.0 / (10000.0 ** (2 / 128)) / np.array([_LONG["short_factor"][1], _LONG["long_factor"][1]])
    scale = np.sqrt(1 + np.log(4) / np.log(1024))
    np.testing.assert_allclose([short[1, 1], long[1, 1]], np.cos(angle) * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 1024}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        (_ROPES["llama3"], 4096),
    ],
)
def test_the_longest_context_follows_from_the_kind(rope: dict[str, Any], limit: int) -> None:
    assert context_limit(spec(rope)) == limit


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"rope_type": "spiral"},
            "rope_type is 'spiral'; accepted: default, linear, dynamic, llama3, yarn, longrope",
        ),
        ({"type": "spiral"}, "type is 'spiral'; accepted: default"),
        ({"rope_type": "linear"}, "field factor is missing"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "field low_freq_factor is missing"),
        (
            {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0},
            "high_freq_factor is 1.0; accepted: a number above low_freq_factor 1.0",
        ),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor is 0.01; accepted: a share of head_dim 128"),
        ({"rope_type": "longrope", **_LONG, "long_factor": [1.0]}, "accepted: 64 numbers"),
        ({"rope_theta": "big"}, "rope_theta is 'big'; accepted: a number above 0"),
    ],
)
def test_a_rope_that_is_not_supported_is_one_line(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(rope)
    assert str(caught.value).startswith("config.json: rope_parameters: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
