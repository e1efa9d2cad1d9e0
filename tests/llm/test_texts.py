"""`airi.LLM` with models that read texts whole: vectors, scores and labels as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from airi import LLM, ContextLengthError, RequestError
from airi.retrieval import Collection, Row
from tests.engine.encoder_folders import (
    TEXTS,
    WINDOW,
    causal_embedder,
    classifier,
    embedder,
    last_vectors,
    logits,
    reranker,
    vectors,
)

LONG = "to be or not to be, that is the question " * 20


@contextmanager
def loaded(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=1, kv_memory=16 << 20, max_num_seqs=8) as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedder(tmp_path_factory.mktemp("m") / "embedder", is_matryoshka=True)


@pytest.fixture(scope="module")
def vector_model(folder: Path) -> Iterator[LLM]:
    with loaded(folder) as made:
        yield made


def test_texts_become_vectors(vector_model: LLM, folder: Path) -> None:
    found = vector_model.embed([*TEXTS, *TEXTS * 10])
    expected = vectors(folder, TEXTS).numpy()
    assert len(found) == 44
    np.testing.assert_allclose(found[:4], expected, atol=2e-6)
    (one,) = vector_model.embed(TEXTS[2])
    np.testing.assert_array_equal(one, found[2])
    assert (one.dtype.name, vector_model.max_model_len) == ("float32", WINDOW)
    assert vector_model.embed([]) == []


def test_a_decoder_gives_the_state_of_its_last_token(tmp_path: Path) -> None:
    folder = causal_embedder(tmp_path / "causal")
    with loaded(folder) as llm:
        found = llm.embed([*TEXTS, *TEXTS * 5])
        with pytest.raises(ContextLengthError):
            llm.embed(LONG)
        with pytest.raises(RequestError, match="gives vectors"):
            llm.generate("to be")
    np.testing.assert_allclose(found[:4], last_vectors(folder, TEXTS).numpy(), atol=2e-6)
    np.testing.assert_allclose(found[20:], found[:4], atol=1e-6)


def test_a_model_embeds_for_a_collection(vector_model: LLM, tmp_path: Path) -> None:
    embedder = vector_model.embedder(chunker="c")
    rows = [Row(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    with Collection.open(tmp_path, "kb") as kb:
        kb.attach(embedder)
        kb.upsert(rows)
        found = kb.search(embedder.encode([TEXTS[3]])[0], space=embedder.space, k=1)
    assert [hit.id for hit in found] == ["3"]
    assert embedder.space != vector_model.embedder(chunker="d").space
    assert embedder.encode([]).shape == (0, 32)
    with pytest.raises(RequestError, match="is empty"):
        embedder.encode([""])


def test_vectors_may_be_cut(vector_model: LLM) -> None:
    (whole,), (cut,) = vector_model.embed("to be"), vector_model.embed("to be", dimensions=5)
    np.testing.assert_allclose(cut, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)
    with pytest.raises(RequestError, match="dimensions: is 33; accepted: 1 to 32"):
        vector_model.embed("to be", dimensions=33)


def test_scores_of_vectors_are_cosines(vector_model: LLM) -> None:
    found = vector_model.embed(TEXTS)
    np.testing.assert_allclose(
        vector_model.score(TEXTS[0], TEXTS), [found[0] @ each for each in found], atol=1e-6
    )
    assert vector_model.score(TEXTS[0], []) == []


def test_a_reranker_scores_and_a_classifier_labels(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "reranker")
    with loaded(folder) as llm:
        expected = logits(folder, ["to be"] * 5, [*TEXTS, LONG])[:, 0].sigmoid()
        np.testing.assert_allclose(llm.score("to be", [*TEXTS, LONG], truncate=True), expected, atol=1e-5)
        assert llm.classify("to be")[0].keys() == {"LABEL_0"}
        with pytest.raises(RequestError, match=r"documents\[1\] has \d+ tokens; the model takes at most 64"):
            llm.score("to be", ["x", LONG])
    folder = classifier(tmp_path / "classifier")
    with loaded(folder) as llm:
        found = llm.classify(TEXTS)
        assert list(found[0]) == ["good", "bad", "so so"]
        np.testing.assert_allclose(
            [list(each.values()) for each in found], logits(folder, TEXTS).softmax(1), atol=1e-5
        )
        with pytest.raises(RequestError, match=r"classifier tells labels of texts; call classify\(\)"):
            llm.score("to be", "or not")


def test_what_cannot_be_read_or_asked_is_refused(vector_model: LLM) -> None:
    with pytest.raises(RequestError, match=r"texts\[1\] is empty"):
        vector_model.embed(["x", ""])
    with pytest.raises(ContextLengthError, match=r"texts\[1\] has 222 tokens; the model takes at most 64"):
        vector_model.embed(["x", LONG])
    assert len(vector_model.embed([LONG], truncate=True)) == 1
    with pytest.raises(RequestError, match="texts must be a text or a list of texts"):
        vector_model.embed([5])  # type: ignore[list-item]
    for call in (vector_model.generate, vector_model.generate_stream):
        with pytest.raises(
            RequestError, match=r"embedder gives vectors of texts; call embed\(\) or score\(\)"
        ):
            call("x")
    with pytest.raises(RequestError, match=r"call embed\(\) or score\(\)"):
        vector_model.chat([{"role": "user", "content": "x"}])
    with pytest.raises(RequestError, match=r"call embed\(\) or score\(\)"):
        vector_model.classify("x")
