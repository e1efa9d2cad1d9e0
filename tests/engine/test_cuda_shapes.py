"""Models that are more than kernels take are refused in a line, before anything is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.shapes import check_shapes
from airi.engine.backends.cuda.shards import Shard
from airi.engine.loader import open_model
from airi.engine.spec import DecoderSpec
from airi.errors import ConfigError
from airi.kernels import limits
from tests.engine.cuda_harness import load

Checkpoints = Callable[[str], Path]


def spec_of(path: Path) -> DecoderSpec:
    return open_model(path, LoadOptions(), on_device=True).spec


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_size": 16385}, "hidden_size is 16385; on GPUs it must be at most 16384"),
        ("llama", {"vocab_size": 600_000}, "vocab_size is 600000; on GPUs it must be at most 524288"),
        (
            "olmo2",
            {"num_heads": 160, "head_dim": 128},
            "num_attention_heads times head_dim is 20480; on GPUs it must be at most 16384",
        ),
    ],
)
def test_a_size_that_kernels_do_not_take_is_named(
    name: str, changes: dict[str, Any], message: str, checkpoint: Checkpoints
) -> None:
    spec = spec_of(checkpoint(name))
    check_shapes(spec, Shard())
    with pytest.raises(ConfigError) as error:
        check_shapes(replace(spec, **changes), Shard())
    assert str(error.value) == message
    assert error.value.field == "model"


def test_more_experts_than_are_routed_to_are_named(checkpoint: Checkpoints) -> None:
    spec = spec_of(checkpoint("qwen3-moe"))
    assert spec.moe is not None
    check_shapes(replace(spec, moe=replace(spec.moe, num_experts=1024)), Shard())
    with pytest.raises(ConfigError, match="num_experts is 1025; on GPUs it must be at most 1024"):
        check_shapes(replace(spec, moe=replace(spec.moe, num_experts=1025)), Shard())


def test_norms_over_the_heads_of_several_devices_may_be_wider(checkpoint: Checkpoints) -> None:
    check_shapes(replace(spec_of(checkpoint("olmo2")), num_heads=160, head_dim=128), Shard(0, 2))


def test_such_a_model_is_refused_before_its_weights_are_copied(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HIDDEN", 8)
    monkeypatch.setattr("airi.engine.backends.cuda.model.load_weights", None)
    with pytest.raises(ConfigError, match=r"hidden_size is \d+; on GPUs it must be at most 8"):
        load(checkpoint("llama"))
