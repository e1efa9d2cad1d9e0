"""Vectors, scores and labels over HTTP, by a real engine: as transformers has them, or one line that says why not."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pytest

from airi.text import Tokenizer
from tests.engine.encoder_folders import TEXTS, WINDOW, classifier, embedder, logits, reranker, vectors

from .conftest import serve_process, wait_until
from .test_bad_input import refused
from .test_real_engine import gauge

LONG = "to be or not to be, that is the question " * 20
SERVE = ("--threads", "1", "--kv-memory", "64MiB", "--log-level", "warning")


class Served(NamedTuple):
    """A server of the built-in model beside an embedder, a reranker and a classifier."""

    url: str
    http: httpx.Client
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    paths = [
        embedder(folder / "embedder", matryoshka_dimensions=[8, 16]),
        reranker(folder / "reranker"),
        classifier(folder / "classifier"),
        embedder(folder / "plain"),
        classifier(folder / "tags", problem_type="multi_label_classification"),
    ]
    with (
        serve_process("airi-demo", *map(str, paths), *SERVE) as (process, url, said),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield Served(url, http, folder)
        process.terminate()
        assert process.wait(60) == 0
        assert not any("Traceback" in line for line in said), "".join(said)


def answer(served: Served, path: str, **body: Any) -> dict[str, Any]:
    response = served.http.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def embedded(served: Served, texts: Any, **fields: Any) -> np.ndarray[Any, Any]:
    body = answer(served, "/v1/embeddings", model="embedder", input=texts, **fields)
    assert [each["index"] for each in body["data"]] == list(range(len(body["data"])))
    return np.array([each["embedding"] for each in body["data"]])


def test_vectors_are_those_of_transformers(served: Served) -> None:
    expected = vectors(served.folder / "embedder", TEXTS)
    np.testing.assert_allclose(embedded(served, TEXTS), expected, atol=2e-6)
    np.testing.assert_allclose(embedded(served, TEXTS[1]), expected[1:2], atol=2e-6)


def test_token_ids_are_read_as_they_are(served: Served) -> None:
    reader = Tokenizer.load(served.folder / "embedder")
    ids = [reader.encode(text) for text in TEXTS]
    expected = embedded(served, TEXTS)
    np.testing.assert_array_equal(embedded(served, ids), expected)
    np.testing.assert_array_equal(embedded(served, ids[2]), expected[2:3])
    body = answer(served, "/v1/embeddings", model="embedder", input=ids)
    assert body["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    assert (body["object"], body["data"][0]["object"], body["model"]) == ("list", "embedding", "embedder")


def test_the_official_client_gets_the_same_in_base64_and_as_numbers(served: Served) -> None:
    expected = embedded(served, TEXTS)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for form in (openai.omit, "float"):
            made: Any = client.embeddings.create(model="embedder", input=TEXTS, encoding_format=form)
            np.testing.assert_array_equal(np.array([each.embedding for each in made.data]), expected)
            assert made.usage.prompt_tokens == made.usage.total_tokens > len(TEXTS)
        with pytest.raises(openai.BadRequestError, match="use /v1/chat/completions or /v1/completions"):
            client.embeddings.create(model="airi-demo", input=TEXTS)
        models = {model.id: model for model in client.models.list()}
    assert {name: model.task for name, model in models.items()} == {  # type: ignore[attr-defined]
        "airi-demo": "generate",
        "embedder": "embed",
        "reranker": "classify",
        "classifier": "classify",
        "plain": "embed",
        "tags": "classify",
    }
    assert models["embedder"].dimensions == 32  # type: ignore[attr-defined]
    assert models["embedder"].max_model_len == WINDOW  # type: ignore[attr-defined]


def test_base64_is_little_endian_float32(served: Served) -> None:
    body = answer(served, "/v1/embeddings", model="embedder", input="to be", encoding_format="base64")
    found = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(found, embedded(served, "to be")[0])


def test_shorter_vectors_have_length_one_again(served: Served) -> None:
    whole, cut = embedded(served, TEXTS), embedded(served, TEXTS, dimensions=8)
    np.testing.assert_allclose(
        cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(embedded(served, TEXTS, dimensions=32), whole)


def test_long_texts_are_cut_where_that_is_asked_for(served: Served) -> None:
    tokens = Tokenizer.load(served.folder / "embedder").encode(LONG)
    cut = [*tokens[: WINDOW - 1], tokens[-1]]
    np.testing.assert_array_equal(embedded(served, LONG, truncate_prompt_tokens=-1), embedded(served, cut))
    short = [*tokens[:4], tokens[-1]]
    np.testing.assert_array_equal(embedded(served, LONG, truncate_prompt_tokens=5), embedded(served, short))
    np.testing.assert_array_equal(embedded(served, tokens, truncate_prompt_tokens=5), embedded(served, short))


def test_what_a_text_says_are_no_special_tokens(served: Served) -> None:
    texts = ["to be [SEP] or not", "to be [CLS][SEP] [MASK]"]
    reader = Tokenizer.load(served.folder / "embedder")
    for text, tokens in zip(
        texts, [answer(served, "/tokenize", model="embedder", prompt=text) for text in texts], strict=True
    ):
        assert tokens["tokens"].count(3) == tokens["tokens"].count(2) == 1
        assert tokens["tokens"] != reader.encode(text)
        np.testing.assert_array_equal(embedded(served, text), embedded(served, tokens["tokens"]))


def test_documents_are_sorted_by_the_sigmoid_of_transformers_logits(served: Served) -> None:
    documents = [*TEXTS, LONG]
    expected = 1 / (1 + np.exp(-logits(served.folder / "reranker", ["to be"] * 5, documents)[:, 0].numpy()))
    given = [{"text": text} if i % 2 else text for i, text in enumerate(documents)]
    fields = {"model": "reranker", "query": "to be", "documents": given, "truncate_prompt_tokens": -1}
    body = answer(served, "/v1/rerank", **fields)
    places = [result["index"] for result in body["results"]]
    assert places == np.argsort(-expected).tolist()
    np.testing.assert_allclose([r["relevance_score"] for r in body["results"]], expected[places], atol=1e-5)
    assert [result["document"]["text"] for result in body["results"]] == [documents[i] for i in places]
    best = answer(served, "/v1/rerank", **fields, top_n=2, return_documents=False)
    assert best["results"] == [
        {name: value for name, value in result.items() if name != "document"}
        for result in body["results"][:2]
    ]
    assert body["usage"]["total_tokens"] > 5


def test_scores_of_pairs(served: Served) -> None:
    expected = 1 / (1 + np.exp(-logits(served.folder / "reranker", TEXTS, TEXTS[::-1])[:, 0].numpy()))

    def scores(model: str, one: Any, other: Any) -> list[float]:
        pairs = {"text_1": one, "text_2": other, "truncate_prompt_tokens": -1}
        body = answer(served, "/v1/score", model=model, **pairs)
        return [each["score"] for each in body["data"]]

    np.testing.assert_allclose(scores("reranker", TEXTS, TEXTS[::-1]), expected, atol=1e-5)
    np.testing.assert_allclose(scores("reranker", TEXTS[1], TEXTS[2]), expected[1:2], atol=1e-5)
    found = embedded(served, TEXTS)
    np.testing.assert_allclose(scores("embedder", TEXTS[0], TEXTS), found @ found[0], atol=1e-6)
    np.testing.assert_allclose(
        scores("embedder", TEXTS, TEXTS[::-1]), (found * found[::-1]).sum(1), atol=1e-6
    )
    ranked = answer(served, "/v1/rerank", model="embedder", query=TEXTS[0], documents=TEXTS)
    assert ranked["results"][0]["index"] == 0
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1)


def test_texts_get_labels_with_probabilities(served: Served) -> None:
    expected = logits(served.folder / "classifier", TEXTS).softmax(1).numpy()
    body = answer(served, "/classify", model="classifier", input=TEXTS)
    np.testing.assert_allclose([each["probs"] for each in body["data"]], expected, atol=1e-5)
    names = ["good", "bad", "so so"]
    assert [each["label"] for each in body["data"]] == [names[i] for i in expected.argmax(1)]
    assert {each["num_classes"] for each in body["data"]} == {3}
    tags = answer(served, "/classify", model="tags", input=TEXTS[0])["data"][0]
    each = logits(served.folder / "tags", TEXTS[:1]).sigmoid()[0].numpy()
    np.testing.assert_allclose(tags["probs"], each, atol=1e-5)
    one = answer(served, "/classify", model="reranker", input=TEXTS[0])["data"][0]
    assert one["num_classes"] == 1
    assert 0 < one["probs"][0] < 1


def test_metadata_tell_what_a_model_does(served: Served) -> None:
    assert served.http.get("/v1/models/tags").json()["task"] == "classify"
    metadata = served.http.get("/v2/models/embedder").json()
    assert (metadata["platform"], metadata["inputs"], metadata["outputs"]) == ("airi_embed", [], [])
    assert served.http.get("/v2/models/airi-demo").json()["platform"] == "airi"
    assert served.http.get("/v2/models/embedder/ready").json()["ready"] is True


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
INFER = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["Hi"]}]}
GENERATES = "airi-demo generates text; use /v1/chat/completions or /v1/completions"
EMBEDS = "embedder gives vectors of texts; use /v1/embeddings, or /v1/score"
LABELS = "classifier tells which of 3 labels fit texts; use /classify"
SCORES = "reranker scores texts; use /v1/rerank, /v1/score or /classify"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {"model": "airi-demo", "input": "x"}, GENERATES),
        ("/v1/rerank", {"model": "airi-demo", "query": "x", "documents": ["x"]}, GENERATES),
        ("/v1/score", {"model": "airi-demo", "text_1": "x", "text_2": "x"}, GENERATES),
        ("/classify", {"model": "airi-demo", "input": "x"}, GENERATES),
        ("/v1/chat/completions", {"model": "embedder", **CHAT}, EMBEDS),
        ("/v1/completions", {"model": "embedder", "prompt": "x"}, EMBEDS),
        ("/v1/responses", {"model": "embedder", "input": "x"}, EMBEDS),
        ("/v1/messages", {"model": "embedder", **CHAT}, EMBEDS),
        ("/v1/messages/count_tokens", {"model": "embedder", "messages": CHAT["messages"]}, EMBEDS),
        ("/tokenize", {"model": "embedder", "messages": CHAT["messages"]}, EMBEDS),
        ("/v2/models/embedder/infer", INFER, EMBEDS),
        ("/v2/models/embedder/generate", {"text_input": "x"}, EMBEDS),
        ("/classify", {"model": "embedder", "input": "x"}, EMBEDS),
        ("/v1/embeddings", {"model": "classifier", "input": "x"}, LABELS),
        ("/v1/rerank", {"model": "classifier", "query": "x", "documents": ["x"]}, LABELS),
        ("/v1/score", {"model": "classifier", "text_1": "x", "text_2": "x"}, LABELS),
        ("/v1/embeddings", {"model": "reranker", "input": "x"}, SCORES),
        ("/v1/chat/completions", {"model": "reranker", **CHAT}, SCORES),
    ],
)
def test_a_model_for_another_task_names_where_to_call_it(
    served: Served, path: str, body: dict[str, Any], says: str
) -> None:
    response = served.http.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message == f"model: {says}"


WIDTH = "this model's maximum context length is 64 tokens; truncate_prompt_tokens: -1 cuts what is longer"
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/embeddings", {"input": ""}, "input: is empty; at least one token is needed"),
    ("/v1/embeddings", {"input": ["x", "", "y"]}, "input[1]: is empty; at least one token is needed"),
    ("/v1/embeddings", {"input": ["x", " "]}, "input[1]: is empty; at least one token is needed"),
    ("/v1/embeddings", {"input": []}, "input: is an empty list"),
    ("/v1/embeddings", {"input": [[5], []]}, "input[1]: is empty; at least one token is needed"),
    ("/v1/embeddings", {"input": ["x", [5]]}, "input: must be a text, token ids, a list of texts or"),
    ("/v1/embeddings", {"input": None}, "input: "),
    ("/v1/embeddings", {}, "input: is missing"),
    ("/v1/embeddings", {"input": [300]}, "input: token id 300 is outside the vocabulary of 300"),
    ("/v1/embeddings", {"input": [[5], [5, 300]]}, "input[1]: token id 300 is outside the vocabulary of 300"),
    ("/v1/embeddings", {"input": [-1]}, "input[0]: "),
    ("/v1/embeddings", {"input": ["x"] * 2049}, "input: has 2049 texts; at most 2048 in one request"),
    ("/v1/embeddings", {"input": ["x", LONG]}, f"input[1]: prompt is too long: 222 tokens; {WIDTH}"),
    (
        "/v1/embeddings",
        {"input": ["x " * 10**6]},
        "input[0]: prompt is too long: the first 1024 of 2000000 characters",
    ),
    (
        "/v1/embeddings",
        {"input": "x", "truncate_prompt_tokens": 2},
        "truncate_prompt_tokens: is 2; accepted: 3 to 64, or -1 for the most that embedder takes",
    ),
    (
        "/v1/embeddings",
        {"input": "x", "truncate_prompt_tokens": 65},
        "truncate_prompt_tokens: is 65; accepted: 3 to 64",
    ),
    (
        "/v1/embeddings",
        {"input": "x", "truncate_prompt_tokens": -2},
        "truncate_prompt_tokens: expected `int` >= -1, got -2",
    ),
    ("/v1/embeddings", {"input": "x", "dimensions": 9}, "dimensions: is 9; accepted: 8, 16, 32"),
    ("/v1/embeddings", {"input": "x", "dimensions": 0}, "dimensions: expected `int` >= 1, got 0"),
    (
        "/v1/embeddings",
        {"input": "x", "model": "plain", "dimensions": 16},
        "dimensions: is 16; accepted: 32 alone, as this model's vectors may not be cut",
    ),
    (
        "/v1/embeddings",
        {"input": "x", "encoding_format": "hex"},
        "encoding_format: 'hex' is not accepted; accepted: base64, float",
    ),
    ("/v1/rerank", {"query": "", "documents": ["x"]}, "query: is empty"),
    ("/v1/rerank", {"query": "x", "documents": []}, "documents: "),
    ("/v1/rerank", {"query": "x", "documents": ["x", ""]}, "documents[1]: is empty"),
    ("/v1/rerank", {"query": "x", "documents": [{"text": ""}]}, "documents[0].text: is empty"),
    ("/v1/rerank", {"query": "x", "documents": [{"title": "x"}]}, "documents[0].text: is missing"),
    ("/v1/rerank", {"query": "x", "documents": ["x", LONG]}, "documents[1]: prompt is too long: "),
    ("/v1/rerank", {"query": "x", "documents": ["x"], "top_n": 0}, "top_n: expected `int` >= 1, got 0"),
    (
        "/v1/rerank",
        {"query": "x", "documents": ["x"], "rank_fields": ["a"]},
        "rank_fields: not supported: a document is read as its `text`",
    ),
    (
        "/v1/rerank",
        {"query": "x", "documents": ["x"], "truncate_prompt_tokens": 5},
        "truncate_prompt_tokens: is 5; accepted: 6 to 64",
    ),
    (
        "/v1/score",
        {"text_1": ["x", "y"], "text_2": ["x", "y", "z"]},
        "text_1: has 2 texts; accepted: one text, or as many as text_2 has, 3",
    ),
    ("/v1/score", {"text_1": "x", "text_2": []}, "text_2: "),
    ("/v1/score", {"text_1": "x", "text_2": ["y", ""]}, "text_2[1]: is empty"),
    ("/classify", {"input": ["x", LONG]}, "input[1]: prompt is too long: 222 tokens"),
    ("/classify", {"input": {"text": "x"}}, "input: "),
]
MODELS = {"/v1/embeddings": "embedder", "/classify": "classifier"}


@pytest.mark.parametrize(("path", "body", "says"), BAD)
def test_bad_input_is_one_line(served: Served, path: str, body: dict[str, Any], says: str) -> None:
    error = refused(served.http.post(path, json={"model": MODELS.get(path, "reranker"), **body}))
    assert error["message"].startswith(says), error["message"]
    assert error["param"] == says.partition(":")[0]


def test_the_most_texts_of_one_call_are_answered_in_their_order(served: Served) -> None:
    texts = [f"to be {i}" for i in range(2048)]
    found = embedded(served, texts)
    assert found.shape == (2048, 32)
    for i in (0, 1000, 2047):
        np.testing.assert_allclose(found[i], embedded(served, texts[i])[0], atol=1e-6)


def test_a_client_that_hangs_up_leaves_nothing_in_the_engine(served: Served) -> None:
    left = gauge(served.url, "airi_client_disconnects_total")
    body = {"model": "embedder", "input": [LONG] * 2048, "truncate_prompt_tokens": -1}
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/embeddings", json=body, timeout=httpx.Timeout(60, read=0.05))
    wait_until(lambda: gauge(served.url, "airi_client_disconnects_total") > left, "a hang-up is not noticed")
    wait_until(
        lambda: gauge(served.url, "airi_requests_running") + gauge(served.url, "airi_requests_waiting") == 0,
        "the engine goes on for nobody",
    )


def test_tokens_that_were_read_are_counted(served: Served) -> None:
    before = gauge(served.url, "airi_prompt_tokens_total")
    body = answer(served, "/v1/embeddings", model="embedder", input=TEXTS)
    assert gauge(served.url, "airi_prompt_tokens_total") - before == body["usage"]["prompt_tokens"]
