"""Encoders against transformers: vectors, classifiers, pairs; and what must not change their bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from airi.engine.backends import LoadOptions
from airi.engine.backends.cpu_encoder import CpuEncoder, load_encoder
from airi.engine.encoder import is_encoder
from airi.errors import CheckpointError, ConfigError

from .encoder_folders import with_modules

SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 200,
    "vocab_size": 500,
    "max_position_embeddings": 80,
}
LENGTHS = [5, 1, 17, 64, 40, 3, 78]
SEPARATOR = 4


def saved(folder: Path, kind: type[PreTrainedModel], config: Any, *, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def opened(folder: Path) -> CpuEncoder:
    return load_encoder(folder, LoadOptions())


def texts(lengths: list[int] = LENGTHS, *, seed: int = 0) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, SMALL["vocab_size"], n).astype(np.int32) for n in lengths]


def forward(encoder: CpuEncoder, batch: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
    starts = np.cumsum([0, *map(len, batch)]).astype(np.int32)
    return encoder.pool(np.concatenate(batch), starts)


def states(model: PreTrainedModel, text: npt.NDArray[np.int32], **inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = model(torch.from_numpy(text).long()[None], **inputs)
    state: torch.Tensor = found.last_hidden_state[0]
    return state


FAMILIES = [
    (BertModel, BertConfig),
    (RobertaModel, RobertaConfig),
    (XLMRobertaModel, XLMRobertaConfig),
]
CLASSIFIERS = [
    (BertForSequenceClassification, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (XLMRobertaForSequenceClassification, XLMRobertaConfig),
]


@pytest.mark.parametrize(("kind", "config"), FAMILIES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_vectors_are_the_mean_of_the_states_of_transformers(
    tmp_path: Path, kind: Any, config: Any, activation: str
) -> None:
    model = saved(tmp_path, kind, config(**SMALL, hidden_act=activation))
    batch = texts()
    found = forward(opened(tmp_path), batch)
    for vector, text in zip(found, batch, strict=True):
        np.testing.assert_allclose(vector, states(model, text).mean(0), atol=2e-6)


def test_pooling_normalising_and_the_longest_text_are_read_from_modules(tmp_path: Path) -> None:
    model = saved(tmp_path, BertModel, BertConfig(**SMALL))
    with_modules(tmp_path, pooling="cls_token", normalize=True, limit=32)
    encoder, batch = opened(tmp_path), texts([5, 20])
    assert encoder.spec.max_tokens == 32
    for vector, text in zip(forward(encoder, batch), batch, strict=True):
        first = states(model, text)[0]
        np.testing.assert_allclose(vector, first / first.norm(), atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), CLASSIFIERS)
def test_classifiers_give_the_logits_of_transformers(tmp_path: Path, kind: Any, config: Any) -> None:
    model = saved(tmp_path, kind, config(**SMALL, num_labels=3))
    encoder, batch = opened(tmp_path), texts()
    assert encoder.spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    for logits, text in zip(forward(encoder, batch), batch, strict=True):
        with torch.inference_mode():
            expected = model(torch.from_numpy(text).long()[None]).logits[0]
        np.testing.assert_allclose(logits, expected, atol=2e-6)


def test_the_second_of_two_texts_has_the_second_token_type(tmp_path: Path) -> None:
    model = saved(tmp_path, BertModel, BertConfig(**SMALL))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": SEPARATOR, "content": "[SEP]"}]})
    )
    encoder = opened(tmp_path)
    first, second = texts([6, 9], seed=3)
    first[-1] = second[-1] = SEPARATOR
    pair = np.concatenate([first, second])
    types = torch.tensor([[0] * len(first) + [1] * len(second)])
    alone, both = forward(encoder, [first, pair])
    np.testing.assert_allclose(alone, states(model, first).mean(0), atol=2e-6)
    np.testing.assert_allclose(both, states(model, pair, token_type_ids=types).mean(0), atol=2e-6)
    assert not np.allclose(both, states(model, pair).mean(0), atol=1e-3), "types make no difference"


def test_a_text_has_the_same_bits_whatever_is_in_its_batch(tmp_path: Path) -> None:
    saved(tmp_path, BertModel, BertConfig(**SMALL))
    encoder, batch = opened(tmp_path), texts()
    together = forward(encoder, batch)
    for place, text in enumerate(batch):
        np.testing.assert_array_equal(forward(encoder, [text])[0], together[place])
    np.testing.assert_array_equal(forward(encoder, batch[::-1])[::-1], together)


def test_an_encoder_is_told_from_a_decoder(tmp_path: Path) -> None:
    saved(tmp_path, BertModel, BertConfig(**SMALL))
    assert is_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert not is_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; accepted: gelu, gelu_new"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7; accepted: a divisor of hidden_size 96"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_a_config_that_cannot_be_run_is_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    saved(tmp_path, BertModel, BertConfig(**SMALL))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path)


def test_pooling_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path, BertModel, BertConfig(**SMALL))
    with_modules(tmp_path, pooling="weightedmean_tokens", normalize=False)
    with pytest.raises(ConfigError, match="pooling is pooling_mode_weightedmean_tokens; accepted is one of"):
        opened(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    saved(tmp_path, BertModel, BertConfig(**SMALL))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.3\.attention\.self\.query"):
        opened(tmp_path)
