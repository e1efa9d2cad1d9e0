"""Collections over HTTP by a real engine: rows, searches, prompts with citations, and who may read what."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.engine.encoder_folders import embedder, vectors

from .conftest import serve_process, wait_until
from .keys import create_key

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///FOLDER/airi.db"}
engine: {device: cpu, kv_memory: 64MiB, threads: 1}
models:
  - {name: chat, source: airi-demo}
  - {name: embedder, task: embed, source: ./embedder}
collections:
  - {name: kb, embedder: embedder, data_class: public}
"""
ROWS = [
    {"id": "fox", "text": "The quick brown fox jumps over the lazy dog.", "metadata": {"team": "red"}},
    {"id": "plain", "text": "A plain sentence.", "metadata": {"team": "blue"}, "source": "b.md"},
    {"id": "be", "text": "to be or not to be, that is the question", "metadata": {"team": "red"}},
]


class Served:
    def __init__(self, url: str, folder: Path, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, headers=headers)
        self.folder = folder

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def refused(self, path: str, **body: Any) -> tuple[int, str]:
        response = self.http.post(path, json=body)
        return response.status_code, response.json()["error"]["message"]

    def ids(self, query: str, **fields: Any) -> list[str]:
        found = self.post("/v1/retrieve", collection="kb", query=query, **fields)
        return [row["id"] for row in found["data"]]


@contextlib.contextmanager
def serving(folder: Path, text: str = CONFIG, **headers: str) -> Iterator[Served]:
    if not (folder / "embedder").exists():
        embedder(folder / "embedder")
    path = folder / "airi.yaml"
    path.write_text(text.replace("FOLDER", str(folder)))
    with serve_process(str(path)) as (_, url, _):
        served = Served(url, folder, **headers)
        with served.http:
            yield served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("retrieval")) as found:
        written = found.post("/v1/collections/kb/rows", rows=ROWS)
        assert (written["added"], written["usage"]["prompt_tokens"] > 0) == (3, True)
        yield found


def test_rows_are_found_by_their_vectors_in_the_embedder_s_space(served: Served) -> None:
    texts = [str(row["text"]) for row in ROWS]
    found = served.post("/v1/retrieve", collection="kb", query="A plain question", top_k=3)
    query, *rows = vectors(served.folder / "embedder", ["A plain question", *texts])
    scores = {row["id"]: row["score"] for row in found["data"]}
    for row, vector in zip(ROWS, rows, strict=True):
        np.testing.assert_allclose(scores[str(row["id"])], float(vector @ query), atol=2e-6)
    assert list(scores) == sorted(scores, key=lambda id: -scores[id])
    assert found["usage"]["prompt_tokens"] > 0
    (collection,) = served.http.get("/v1/collections").json()["data"]
    assert (collection["id"], collection["rows"], collection["space"]) == ("kb", 3, found["space"])
    assert served.http.get("/v1/collections/kb").json() == collection


def test_words_filters_and_counts_choose_rows(served: Served) -> None:
    assert served.ids("lazy fox", mode="text") == ["fox"]
    assert served.ids("lazy fox", mode="hybrid", top_k=1) == ["fox"]
    assert set(served.ids("sentence", filter={"team": "red"})) == {"fox", "be"}
    assert len(served.ids("sentence", top_k=2)) == 2
    assert served.ids("sentence", min_score=2.0) == []


def test_what_is_removed_is_there_at_an_earlier_moment(served: Served) -> None:
    more = {"id": "more", "text": "quick question", "metadata": {}}
    before = served.post("/v1/collections/kb/rows", rows=[more])["snapshot"]
    assert served.post("/v1/collections/kb/rows", remove=["more"])["removed"] == 1
    assert "more" not in served.ids("quick question")
    assert "more" in served.ids("quick question", snapshot=before)


def test_a_prompt_is_made_of_what_is_found(served: Served) -> None:
    context = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Who jumps?"}],
        "reserved_output": 64,
    }
    found = served.post("/v1/retrieve", collection="kb", query="fox", mode="text", context=context)["context"]
    text = json.dumps(found["messages"])
    assert "lazy dog" in text
    assert "Who jumps?" in text
    assert [citation["ids"] for citation in found["citations"]] == [["fox"]]
    receipt = found["receipt"]
    total = receipt["prompt_tokens"] + receipt["reserved_output"] + receipt["left"]
    assert (receipt["used"], receipt["window"]) == (["fox"], total)
    counted = served.post("/tokenize", model="chat", messages=found["messages"])["count"]
    assert counted == receipt["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_gets_documents_and_tells_its_citations(served: Served, *, stream: bool) -> None:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "lazy fox"}],
        "max_tokens": 4,
        "airi": {"retrieve": "kb", "mode": "text"},
        "stream": stream,
    }
    plain = served.post("/v1/chat/completions", **{**body, "airi": None, "stream": False})
    if stream:
        answer = served.http.post("/v1/chat/completions", json=body)
        first = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))
        assert first["choices"] == []
        told = first["airi"]
    else:
        whole = served.post("/v1/chat/completions", **body)
        told = whole["airi"]
        assert (told["cited"], told["unknown"]) == ([], [])
        assert whole["usage"]["prompt_tokens"] == told["receipt"]["prompt_tokens"]
        assert whole["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert (told["collection"], [each["ids"] for each in told["citations"]]) == ("kb", [["fox"]])


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/retrieve", {"collection": "nix", "query": "a"}, 404, "no collection 'nix'; there are: kb"),
        ("/v1/retrieve", {"collection": "kb", "query": " "}, 400, "query: is empty"),
        ("/v1/retrieve", {"collection": "kb", "query": "a b " * 90}, 400, "query: prompt is too long"),
        (
            "/v1/retrieve",
            {"collection": "kb", "query": "a", "filter": {"a": {"$near": 1}}},
            400,
            "filter.a.$near is no operator",
        ),
        ("/v1/retrieve", {"collection": "kb", "query": "a", "top_k": 0}, 400, "top_k"),
        ("/v1/retrieve", {"collection": "kb", "query": "a", "snapshot": 10**9}, 400, "snapshot"),
        ("/v1/collections/kb/rows", {}, 400, "rows: is empty, and so is `remove`"),
        (
            "/v1/collections/kb/rows",
            {"rows": [{"id": "a", "text": "x " * 99}]},
            400,
            "rows[0].text: prompt is",
        ),
        (
            "/v1/collections/kb/rows",
            {"rows": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]},
            400,
            "rows[1].id 'a' is that of rows[0], too",
        ),
        (
            "/v1/chat/completions",
            {
                "model": "chat",
                "messages": [{"role": "assistant", "content": "a"}],
                "airi": {"retrieve": "kb"},
            },
            400,
            "messages: must end with a text of the user",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    served: Served, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    code, message = served.refused(path, **body)
    assert (code, says in message) == (status, True), message
    assert served.http.get("/v1/collections/kb").json()["rows"] == 3


def test_a_mistake_is_told_before_there_is_anything_to_search(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        asked = {"collection": "kb", "query": "a"}
        code, message = served.refused("/v1/retrieve", **asked, filter={"a": {"$gtt": 1}})
        assert (code, "did you mean" in message) == (400, True), message
        assert served.refused("/v1/retrieve", **asked)[0] == 409


POLICIES = """\
tenants:
  - {name: red, groups: [staff], auth: {key_prefix: sk-red}}
  - {name: blue, auth: {key_prefix: sk-blue}}
  - {name: green, auth: {key_prefix: sk-green}}
policies:
  text: |
    @rows("{team: '${principal.name}'}")
    permit (principal, action == Action::"retrieve", resource == Collection::"kb");
    permit (principal in Group::"staff", action in [Action::"ingest", Action::"embed"], resource);
    @rows("{team: 'blue'}")
    permit (principal == Tenant::"blue", action == Action::"ingest", resource);
    permit (principal, action == Action::"embed", resource);
"""


def test_policies_say_who_reads_which_rows(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG + POLICIES) as served:
        url = str(served.http.base_url)
        red, blue, green = (
            Served(url, tmp_path, authorization=f"Bearer {create_key(tmp_path / 'airi.yaml', name)}")
            for name in ("red", "blue", "green")
        )
        with red.http, blue.http, green.http:
            for each in (red, blue, green):  # keys made elsewhere are known within seconds
                wait_until(partial(answers, each), "a key is not known")
            assert green.refused("/v1/collections/kb/rows", rows=ROWS)[0] == 403
            # A filter says what is read of a collection; who has one may neither write nor list all there is.
            assert blue.refused("/v1/collections/kb/rows", rows=ROWS)[0] == 400
            for listed in ("rows?source=b.md", "sources"):
                assert blue.http.get(f"/v1/collections/kb/{listed}").status_code == 400
                assert red.http.get(f"/v1/collections/kb/{listed}").status_code == 200
            red.post("/v1/collections/kb/rows", rows=ROWS)
            assert set(red.ids("sentence")) == {"fox", "be"}
            assert blue.ids("sentence") == ["plain"]
            assert red.ids("sentence", mode="text", filter={"team": "blue"}) == []
            assert served.http.get("/v1/collections").status_code == 401


def answers(served: Served) -> bool:
    return served.http.get("/v1/collections").status_code != 401


def waits_for(served: Served) -> str:
    (line,) = served.http.get("/admin/rollouts").json()["data"]
    return str(line["waits_for"])


VERSIONS = (
    CONFIG.replace(
        "source: ./embedder}", "versions: [{id: e1, source: ./embedder}, {id: e2, source: ./other}]}"
    )
    + """\
rollouts:
  embedder: {candidate: e2, steps: [{set_weight: 50}, {pause: {}}]}
"""
)


def test_a_rollout_of_the_embedder_moves_queries_between_spaces_that_never_meet(tmp_path: Path) -> None:
    embedder(tmp_path / "other", seed=2)
    with serving(tmp_path, VERSIONS) as served:
        served.post("/v1/collections/kb/rows", rows=ROWS)
        first = served.http.get("/v1/collections/kb").json()["space"]

        def space(release: str) -> str:
            sent = {"x-airi-release": release}
            body = {"collection": "kb", "query": "sentence"}
            answer = served.http.post("/v1/retrieve", json=body, headers=sent)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["data"]) == 3
            return str(answer.json()["space"])

        assert space("e1") == first
        served.post("/admin/rollouts/embedder/start")
        wait_until(lambda: waits_for(served) == "somebody to promote", "the candidate is not ready")
        second = space("e2")
        assert second != first
        assert space("e1") == first
        served.post("/v1/collections/kb/rows", rows=[{"id": "late", "text": "quick question"}], remove=["be"])
        wait_until(
            lambda: len({space("e1"), space("e2")}) == 2, "rows written meanwhile are in one space alone"
        )
        assert served.http.get("/v1/collections/kb").json()["space"] == first
        served.post("/admin/rollouts/embedder/promote", full=True)
        wait_until(
            lambda: served.http.get("/v1/collections/kb").json()["space"] == second,
            "the pointer has not moved",
        )


def with_vectors(served: Served) -> list[int]:
    """How many rows of each space have them."""
    return [each["rows"] for each in served.http.get("/v1/collections/kb").json()["spaces"].values()]


def test_a_gateway_that_is_killed_while_a_space_is_filled_goes_on_with_it(tmp_path: Path) -> None:
    for name, seed in (("embedder", 1), ("other", 2)):
        embedder(tmp_path / name, seed=seed)
    path = tmp_path / "airi.yaml"
    path.write_text(VERSIONS.replace("FOLDER", str(tmp_path)))
    rows = [ROWS[0], *({"id": str(i), "text": "to be or not to be"} for i in range(3999))]

    with serve_process(str(path)) as (process, url, _):
        served = Served(url, tmp_path)
        for first in range(0, len(rows), 2000):
            served.post("/v1/collections/kb/rows", rows=rows[first : first + 2000])
        served.post("/admin/rollouts/embedder/start")
        wait_until(lambda: len(with_vectors(served)) == 2, "no space is added")
        wait_until(lambda: min(with_vectors(served)) > 0, "nothing is filled")
        assert min(with_vectors(served)) < len(rows), "all is filled"
        process.kill()
        served.http.close()
    with serve_process(str(path)) as (_, url, _):
        served = Served(url, tmp_path)
        assert with_vectors(served)[0] == len(rows)
        assert served.ids(str(ROWS[0]["text"]), top_k=1) == ["fox"]
        wait_until(lambda: waits_for(served) == "somebody to promote", "the candidate is not ready")
        assert with_vectors(served) == [len(rows)] * 2
        asked = {"collection": "kb", "query": ROWS[0]["text"], "top_k": 1}
        found = served.http.post("/v1/retrieve", json=asked, headers={"x-airi-release": "e2"}).json()
        assert [row["id"] for row in found["data"]] == ["fox"]
        served.http.close()
