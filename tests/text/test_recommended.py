"""Sampling that a checkpoint recommends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airi.errors import CheckpointError
from airi.text import recommended_sampling


def test_sampling_fields_are_taken_and_others_are_not(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == {}
    config = {"temperature": 0.6, "top_k": 20.0, "top_p": None, "do_sample": True, "eos_token_id": [1]}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert recommended_sampling(tmp_path) == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "broken JSON"),
        ("[]", "must hold a JSON object"),
        ('{"top_p": 1.5}', r"top_p must be in \(0, 1\], got 1.5"),
        ('{"temperature": true}', "temperature must be a number, got True"),
        ('{"top_k": 2.5}', "top_k must be an integer, got 2.5"),
    ],
)
def test_what_cannot_be_meant_is_an_error_of_the_checkpoint(tmp_path: Path, config: str, says: str) -> None:
    (tmp_path / "generation_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {says}"):
        recommended_sampling(tmp_path)
