"""`airi ingest` and `airi search` beside a server with a real embedder, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airi.cli import main
from tests.engine.encoder_folders import embedder

from .conftest import serve_process
from .keys import create_key

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///STATE"}
engine: {device: cpu, kv_memory: 64MiB, threads: 1}
models:
  - {name: embedder, task: embed, source: ./embedder}
collections:
  - {name: kb, embedder: embedder, chunking: {max_tokens: 32}, sources: [./docs]}
  - {name: bare, embedder: embedder, chunking: {max_tokens: 32}, fields: {team: string}}
tenants:
  - {name: writer, auth: {key_prefix: sk-writer}}
  - {name: other, auth: {key_prefix: sk-other}}
  - {name: counted, auth: {key_prefix: sk-counted}, limits: {tpm_limit: 1}}
policies:
  text: |
    permit (principal == Tenant::"writer", action, resource);
    permit (principal == Tenant::"counted", action, resource);
    permit (principal, action == Action::"retrieve", resource);
"""
Result = tuple[int, str, str]
Airi = Callable[..., Result]


@dataclass(frozen=True)
class Served:
    folder: Path
    url: str
    writer: str
    """A key of who may write."""
    other: str
    """A key of who may not."""
    counted: str
    """A key of who may, but less than a document has tokens."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ingest")
    embedder(folder / "embedder")
    path = folder / "airi.yaml"
    path.write_text(CONFIG.replace("STATE", str(folder / "airi.db")))
    keys = [create_key(path, tenant) for tenant in ("writer", "other", "counted")]
    with serve_process(str(path)) as (_, url, _):
        yield Served(folder, url, *keys)


@pytest.fixture
def airi(served: Served, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Airi:
    monkeypatch.chdir(served.folder)
    monkeypatch.setenv("AIRI_API_KEY", served.writer)

    def run(*arguments: str) -> Result:
        code = main([*arguments, "--url", served.url])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def docs(served: Served, airi: Airi) -> Iterator[Path]:
    """Two documents, which no collection has when the test ends."""
    folder = served.folder / "docs"
    folder.mkdir(exist_ok=True)
    (folder / "fox.md").write_text("# Fox\n\nThe quick brown fox jumps over the lazy dog.\n")
    (folder / "plain.md").write_text("# Plain\n\nA plain sentence.\n")
    yield folder
    for each in folder.iterdir():
        each.unlink()
    airi("ingest", "kb", "--prune")


def figures(done: Result) -> dict[str, Any]:
    assert done[0] == 0, done[2]
    found: dict[str, Any] = json.loads(done[1])
    return found


def test_a_collections_own_sources_are_ingested_and_found(airi: Airi, docs: Path) -> None:
    done = figures(airi("ingest", "kb", "--json"))
    assert (done["files"], done["added"], done["failures"]) == (2, 2, [])
    again = figures(airi("ingest", "kb", "--json"))
    assert (again["added"], again["moved"], again["kept"], again["removed"]) == (0, 0, 2, 0)
    code, out, _ = airi("search", "kb", "quick brown fox", "--json", "-k", "1")
    (hit,) = [json.loads(line) for line in out.splitlines()]
    assert (code, hit["source"]) == (0, "docs/fox.md")
    shown = airi("search", "kb", "a plain sentence", "--mode", "text")[1]
    assert shown.startswith("1. docs/plain.md (")


def test_what_has_changed_is_written_and_what_is_gone_removed(airi: Airi, docs: Path) -> None:
    airi("ingest", "kb")
    (docs / "plain.md").write_text("# Plain\n\nTo be or not to be.\n")
    (docs / "fox.md").unlink()
    done = figures(airi("ingest", "kb", "--prune", "--json"))
    assert (done["added"], done["removed"]) == (1, 2)
    sources = {json.loads(line)["source"] for line in airi("search", "kb", "fox", "--json")[1].splitlines()}
    assert sources == {"docs/plain.md"}


def test_what_cannot_be_read_is_a_line_and_the_rest_is_done(airi: Airi, docs: Path) -> None:
    (docs / "old.pdf").write_bytes(b"%PDF-1.7 broken")
    code, out, err = airi("ingest", "kb", "docs")
    assert code == 1
    assert "2 chunks added" in out
    assert err.startswith("airi: docs/old.pdf: ")


def test_what_the_server_refuses_of_a_document_is_a_line_and_the_rest_is_done(airi: Airi, docs: Path) -> None:
    rows = docs / "rows.jsonl"
    rows.write_text('{"text": "a plain row", "team": 3}\n{"text": "to be", "team": "red"}\n')
    code, out, err = airi("ingest", "bare", "docs/rows.jsonl")
    assert code == 1, out
    assert "1 chunks added" in out
    assert err.startswith("airi: docs/rows.jsonl")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ingest", "nope"], "airi: collection is 'nope'; airi.yaml has: kb, bare\n"),
        (
            ["ingest", "bare"],
            "airi: collection bare has no sources in airi.yaml; name files or folders\n",
        ),
        (["search", "kb", "fox", "--filter", "{"], "airi: filter is no JSON object"),
        (["search", "kb", "fox", "-k", "0"], "top_k"),
        (["search", "kb", " "], "query: is empty"),
        (["search", "nope", "fox"], "no collection 'nope'; there are: kb, bare"),
        (["ingest", "kb", "--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_users_mistake_is_one_line(airi: Airi, arguments: list[str], told: str) -> None:
    code, out, err = airi(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.startswith("airi: ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("docs")
def test_an_unknown_operator_of_a_filter_is_one_line(airi: Airi) -> None:
    airi("ingest", "kb")
    code, out, err = airi("search", "kb", "fox", "--filter", '{"a": {"$gtt": 1}}')
    assert (code, out) == (2, "")
    assert err.startswith("airi: ")
    assert "did you mean $gt" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("docs")
def test_who_may_not_write_is_told_so(airi: Airi, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRI_API_KEY", served.other)
    code, _, err = airi("ingest", "kb")
    assert code == 2
    assert "status 403" in err
    monkeypatch.delenv("AIRI_API_KEY")
    code, _, err = airi("search", "kb", "fox")
    assert code == 2
    assert "status 401" in err


def test_who_is_over_a_limit_is_told_so(
    airi: Airi, served: Served, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    airi("ingest", "kb")
    (docs / "plain.md").write_text("# Plain\n\nTo be or not to be.\n")
    monkeypatch.setenv("AIRI_API_KEY", served.counted)
    for arguments in (["ingest", "kb"], ["search", "kb", "quick brown fox"]):
        code, out, err = airi(*arguments)
        assert (code, out) == (2, "")
        assert "status 429" in err
        assert err.startswith("airi: ")
        assert err.count("\n") == 1
    monkeypatch.setenv("AIRI_API_KEY", served.writer)  # whose rows are removed when the test ends


@pytest.mark.usefixtures("docs")
def test_a_server_that_does_not_run_is_one_line(served: Served) -> None:
    """By the config alone, as where nothing else is said."""
    text = (served.folder / "airi.yaml").read_text().replace("port: 0", "port: 9")
    (served.folder / "other.yaml").write_text(text)
    command = [sys.executable, "-m", "airi", "ingest", "kb", "--config", "other.yaml"]
    done = subprocess.run(
        command,
        cwd=served.folder,
        env={**os.environ, "AIRI_API_KEY": served.writer},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("airi: http://127.0.0.1:9 cannot be reached: ")
