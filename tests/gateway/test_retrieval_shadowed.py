"""Searches are made once more with a candidate's vectors: what both find decides whether a rollout goes on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.encoder_folders import embedder

from .conftest import wait_until
from .test_retrieval_served import VERSIONS, Served, serving, waits_for

SHADOWED = VERSIONS.replace(
    "steps: [{set_weight: 50}, {pause: {}}]",
    "steps: [{shadow: {percent: 100, duration: 1s}}, {pause: {}}], "
    "gates: {finds: [{metric: retrieval.overlap, min: 0.9, min_samples: 30}]}",
)
MANY = [
    {"id": str(i), "text": " ".join(words), "metadata": {"team": ("red", "blue")[i % 2]}}
    for i, words in enumerate(itertools.permutations(["the", "quick", "brown", "fox", "question"], 3))
]
QUERIES: list[dict[str, Any]] = [
    {"query": "to be the question"},
    {"query": "quick fox", "filter": {"team": "red"}},
    {"query": "brown dog", "mode": "hybrid", "top_k": 4},
    {"query": "lazy question", "mmr": 0.5, "min_score": 0.1},
    {"query": "jumps over", "top_k": 3},
]


def shadow(served: Served) -> dict[str, Any] | None:
    """What is told of the candidate's space."""
    found = served.http.get("/v1/collections/kb").json()
    spaces = [each for key, each in found["spaces"].items() if key != found["space"]]
    return spaces[0].get("shadow") if spaces else None


def test_a_candidate_that_finds_the_same_rows_passes(tmp_path: Path) -> None:
    # The same weights, but another space: what is asked again must be asked in the same way.
    other = shutil.copytree(embedder(tmp_path / "embedder"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"revision": 2}))
    with serving(tmp_path, SHADOWED) as served:
        served.post("/v1/collections/kb/rows", rows=MANY)
        served.post("/admin/rollouts/embedder/start")
        wait_until(lambda: "finds" in waits_for(served), "searches are not waited for")
        assert shadow(served) is None
        search_until(served, lambda: waits_for(served) == "somebody to promote", "the gate does not pass")
        found = told(served)
        assert found["searches"] >= 30
        assert found["overlap"] == 1.0
        labels = '{collection="kb",model_name="embedder",version="e2"}'
        assert (
            f"airi_retrieval_overlap_count{labels} {found['searches']}.0" in served.http.get("/metrics").text
        )


def search_until(served: Served, condition: Callable[[], bool], what: str) -> None:
    """Searches again and again: on a busy machine not all are made again by the candidate."""

    def searched() -> bool:
        for query in QUERIES:
            served.post("/v1/retrieve", collection="kb", **query)
        return condition()

    wait_until(searched, what)


def told(served: Served) -> dict[str, Any]:
    return shadow(served) or {"searches": 0}


def test_a_candidate_that_finds_other_rows_is_rolled_back(tmp_path: Path) -> None:
    embedder(tmp_path / "other", seed=2)
    with serving(tmp_path, SHADOWED) as served:
        served.post("/v1/collections/kb/rows", rows=MANY)
        served.post("/admin/rollouts/embedder/start")
        wait_until(lambda: "finds" in waits_for(served), "searches are not waited for")
        before = [served.ids(**query) for query in QUERIES]
        search_until(served, lambda: phase(served) == "aborted", "the gate does not fail")
        assert told(served)["overlap"] < 0.9
        # The old pointer, and nothing of the candidate's in any answer.
        assert [served.ids(**query) for query in QUERIES] == before
        asked = told(served)["searches"]
        served.ids("quick fox")
        assert told(served)["searches"] == asked


def phase(served: Served) -> str:
    (line,) = served.http.get("/admin/rollouts").json()["data"]
    return str(line["phase"])
