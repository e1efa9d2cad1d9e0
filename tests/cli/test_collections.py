"""`airi ingest` and `airi search`, with vectors by a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from airi import builtin

from .conftest import Result, StubServer

Airi = Callable[..., Result]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "moon.md").write_text("# Moon\n\nThe Moon is far.\n")
    (folder / "sun.md").write_text("# Sun\n\nThe Sun is hot.\n")
    return folder


@pytest.fixture
def ingest(airi: Airi, server: StubServer, docs: Path, tmp_path: Path) -> Airi:
    def run(*arguments: str, path: Path = docs) -> Result:
        options = [
            "--folder",
            str(tmp_path / "kept"),
            "--url",
            server.url,
            "--tokenizer",
            str(builtin.path()),
        ]
        return airi("ingest", "kb", str(path), *options, *arguments)

    return run


@pytest.fixture
def search(airi: Airi, server: StubServer, tmp_path: Path) -> Airi:
    def run(query: str, *arguments: str) -> Result:
        return airi(
            "search", "kb", query, "--folder", str(tmp_path / "kept"), "--url", server.url, *arguments
        )

    return run


def test_files_are_ingested_and_found(ingest: Airi, search: Airi, server: StubServer, docs: Path) -> None:
    done = ingest("--json")
    assert done.code == 0
    figures = json.loads(done.out)
    assert (figures["files"], figures["added"], figures["failures"]) == (2, 2, [])
    assert {body["model"] for body in server.bodies} == {"stub-1"}
    hits = [json.loads(line) for line in search("how far is the moon", "--json").out.splitlines()]
    assert [hit["source"] for hit in hits] == [str(docs / "moon.md"), str(docs / "sun.md")]
    shown = search("the sun", "-k", "1")
    assert shown.code == 0
    assert shown.out.startswith(f"1. {docs / 'sun.md'} (")
    assert json.loads(ingest("--json").out)["kept"] == 2


def test_what_cannot_be_read_is_a_line_and_the_rest_is_done(ingest: Airi, docs: Path) -> None:
    (docs / "old.pdf").write_bytes(b"%PDF-1.7 broken")
    done = ingest()
    assert done.code == 1
    assert "2 chunks added" in done.out
    assert f"airi: {docs / 'old.pdf'}: " in done.err


def test_vectors_that_cannot_be_compared_are_refused(
    ingest: Airi, search: Airi, server: StubServer, docs: Path
) -> None:
    assert (
        search("a").err
        == f"airi: there is no collection kb in {docs.parent / 'kept'}; `airi ingest` makes it\n"
    )
    ingest()
    other = ingest("--model", "stub-2")
    assert other.code == 2
    assert "has vectors of model 'stub-1', these would be of 'stub-2'" in other.err
    assert "has vectors of chunker" in ingest("--max-tokens", "100").err
    server.weights = 1
    for done in (search("moon"), ingest()):
        assert done.code == 2
        assert "stub-1 gives other vectors now" in done.err


def test_a_users_mistake_is_one_line(ingest: Airi, search: Airi) -> None:
    ingest()
    assert search("moon", "--filter", "{").err.startswith("airi: filter is no JSON object")
    assert "did you mean $gt" in search("moon", "--filter", '{"a": {"$gtt": 1}}').err
    assert search(" ").err == "airi: question is empty\n"
