"""Which model is meant when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi import builtin
from airi.errors import CheckpointError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with a built-in model, seen from an empty folder."""
    folder = tmp_path / "package" / builtin.NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "package" / "__init__.py"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_no_model_and_its_own_name_mean_the_built_in_one(installed: Path) -> None:
    assert builtin.path() == installed
    assert builtin.resolve(None) == builtin.resolve(builtin.NAME) == str(installed)


def test_any_other_name_is_left_as_it_is(installed: Path) -> None:
    assert builtin.resolve("hf://org/name") == "hf://org/name"
    assert builtin.resolve(Path("some/folder")) == "some/folder"


def test_a_folder_of_that_name_comes_first(installed: Path) -> None:
    Path(builtin.NAME).mkdir()
    assert builtin.resolve(builtin.NAME) == builtin.NAME


def test_an_installation_without_it_says_so(installed: Path) -> None:
    (installed / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no built-in model"):
        builtin.resolve(None)
