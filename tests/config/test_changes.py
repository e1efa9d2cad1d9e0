"""What a version has changed of another, by their files, and what `airi check` says where it is too much for `auto`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from airi import builtin
from airi.bench.shapes import SHAPES, make_checkpoint
from airi.config import ConfigFile
from airi.config.changes import change_between, change_mistakes
from airi.errors import CheckpointError
from airi.lifecycle.gates import Change
from benches.faulty import write_candidate

from .conftest import write

CONFIG = """\
version: 1
models:
  - name: general
    versions: [{id: g1, source: airi-demo}, {id: g2, source: CANDIDATE}]
rollouts:
  general:
    steps: [{shadow: {percent: 10, duration: 1m}}, {set_weight: 50}]
    gates:
      tokens:
        - {metric: token.nll_delta, max: auto}
        - {metric: token.top1_agreement, min: auto}
"""


@pytest.mark.parametrize(
    ("candidate", "change"),
    [
        ("identical", Change.SAME_WEIGHTS),
        ("template", Change.SAME_WEIGHTS),
        ("rope", Change.SAME_WEIGHTS),
        ("noise", Change.FINETUNE),
        ("tokenizer", Change.NEW_BASE),
    ],
)
def test_a_change_is_told_by_the_files(tmp_path: Path, candidate: str, change: Change) -> None:
    assert change_between(builtin.path(), write_candidate(candidate, tmp_path)) is change


def test_one_weight_that_differs_is_another_checkpoint(tmp_path: Path) -> None:
    other = write_candidate("identical", tmp_path)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert change_between(builtin.path(), other) is Change.FINETUNE


def test_other_shapes_and_families_are_another_base(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    make_checkpoint(SHAPES["llama-2m"], tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    for name in ("m", "n"):
        shutil.copy(builtin.path() / "tokenizer.json", tmp_path / name / "tokenizer.json")
    assert change_between(tmp_path / "m", tmp_path / "n") is Change.SAME_WEIGHTS
    assert change_between(builtin.path(), tmp_path / "m") is Change.NEW_BASE
    config = json.loads((tmp_path / "n" / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (tmp_path / "n" / "config.json").write_text(json.dumps(config))
    assert change_between(tmp_path / "m", tmp_path / "n") is Change.NEW_BASE


def test_what_is_no_model_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        change_between(builtin.path(), tmp_path)


def config(folder: Path, candidate: str, text: str = CONFIG) -> ConfigFile:
    return write(folder, text.replace("CANDIDATE", candidate))


def test_auto_is_refused_where_nothing_can_be_promised(tmp_path: Path) -> None:
    (mistake,) = change_mistakes(config(tmp_path, str(write_candidate("tokenizer", tmp_path))))
    assert str(mistake).partition(": ")[2] == (
        "rollouts.general.gates.tokens[0].max is 'auto'; accepted: a number: g2 has another tokenizer or network "
        "than g1, so nothing can be promised of its tokens"
    )
    with_numbers = CONFIG.replace("max: auto", "max: 1").replace("min: auto", "min: 0.5")
    assert not list(change_mistakes(config(tmp_path, str(tmp_path / "tokenizer"), with_numbers)))


@pytest.mark.parametrize("candidate", ["airi-demo", "hf://acme/absent", "./nowhere"])
def test_auto_is_taken_where_little_has_changed_or_nobody_can_tell_yet(
    tmp_path: Path, candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert not list(change_mistakes(config(tmp_path, candidate)))
