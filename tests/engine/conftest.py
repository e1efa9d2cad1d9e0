from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.tiny_models import Reference, compute_references, make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the tiny checkpoint of a name, once per session."""

    @functools.cache
    def make(name: str) -> Path:
        return make_checkpoint(name, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def references(checkpoint: Callable[[str], Path]) -> Callable[[str], list[Reference]]:
    """What transformers computes with a tiny checkpoint, once per session."""

    @functools.cache
    def compute(name: str) -> list[Reference]:
        return compute_references(checkpoint(name))

    return compute


@pytest.fixture(scope="session")
def tiny_llama(checkpoint: Callable[[str], Path]) -> Path:
    """A folder called llama: engines serve it under that name."""
    return _named("llama", checkpoint)


@pytest.fixture(scope="session")
def tiny_qwen3(checkpoint: Callable[[str], Path]) -> Path:
    """A folder called qwen3."""
    return _named("qwen3", checkpoint)


def _named(name: str, checkpoint: Callable[[str], Path]) -> Path:
    folder = checkpoint(name)
    link = folder.parent / name
    if not link.exists():
        link.symlink_to(folder)
    return link


@pytest.fixture(scope="session")
def llama_references(references: Callable[[str], list[Reference]]) -> list[Reference]:
    return references("llama")


@pytest.fixture(scope="session")
def qwen3_references(references: Callable[[str], list[Reference]]) -> list[Reference]:
    return references("qwen3")
