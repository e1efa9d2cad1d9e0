"""`airi.LLM` over an engine whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airi import LLM
from tests.llm.fake_engine import FakeEngine, make_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def llm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setattr("airi.engine.Engine", FakeEngine)
    with LLM(folder) as made:
        yield made


@pytest.fixture
def engine(llm: LLM) -> FakeEngine:
    fake: Any = llm._engine
    assert isinstance(fake, FakeEngine)
    return fake
