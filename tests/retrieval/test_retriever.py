"""Files to a prompt: ingested into a collection, found for a question, cited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airi import builtin
from airi.errors import RequestError
from airi.retrieval import Collection, CollectionShelf, Retriever, SearchOptions
from airi.retrieval.ingest import Chunker, EmbedderTokens, Report, find_files, ingest
from airi.text import Tokenizer
from tests.retrieval.hashing import HashingEmbedder

MOON = "# Moon\n\nThe Moon is far: light takes more than a second.\n"
SUN = "# Sun\n\nThe Sun is hot, and light takes eight minutes.\n"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "moon.md").write_text(MOON)
    (folder / "sun.md").write_text(SUN)
    return folder


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
def collection(tmp_path: Path, embedder: HashingEmbedder) -> Iterator[Collection]:
    with Collection.open(tmp_path / "collections", "kb") as opened:
        opened.attach(embedder)
        yield opened


@pytest.fixture(scope="module")
def chunker() -> Chunker:
    return Chunker(counter=EmbedderTokens.load(builtin.path()), max_tokens=64)


def brought(collection: Collection, docs: Path, chunker: Chunker) -> Report:
    return ingest(find_files([docs]), CollectionShelf(collection), chunker, prune=True)


def test_files_are_found_and_cited(
    collection: Collection, embedder: HashingEmbedder, docs: Path, chunker: Chunker
) -> None:
    assert brought(collection, docs, chunker).added == 2
    retriever = Retriever(collection, embedder, search=SearchOptions(k=2))
    tokenizer = Tokenizer.load(str(builtin.path()))
    assert retriever.search("how far is the moon")[0].source.endswith("moon.md")
    context = retriever.context("How far is the Moon?", tokenizer=tokenizer, window=600, reserved_output=50)
    assert context.prompt_tokens == len(tokenizer.encode_chat(context.messages)) <= 550
    (number,) = [n for n, each in context.citations.items() if each.source.endswith("moon.md")]
    (citation,) = context.cite(f"It is far [{number}].").citations
    assert (docs / "moon.md").read_text()[citation.start : citation.end] == MOON.strip()


def test_only_what_has_changed_is_written_and_embedded(
    collection: Collection, embedder: HashingEmbedder, docs: Path, chunker: Chunker
) -> None:
    brought(collection, docs, chunker)
    assert (embedder.texts, collection.sources()) == (2, [str(docs / "moon.md"), str(docs / "sun.md")])
    before = collection.snapshot()
    assert brought(collection, docs, chunker).kept == 2
    assert collection.snapshot() == before
    (docs / "moon.md").write_text("\n\n" + MOON)
    assert brought(collection, docs, chunker).moved == 1
    assert embedder.texts == 2
    (hit,) = collection.search(
        embedder.encode([MOON.strip()])[0],
        space=embedder.space,
        k=1,
        filter={"source": str(docs / "moon.md")},
    )
    assert (hit.metadata["chunk"]["start"], round(hit.score, 5)) == (2, 1.0)
    (docs / "sun.md").unlink()
    assert brought(collection, docs, chunker).removed == 1
    assert collection.sources() == [str(docs / "moon.md")]


def test_questions_that_cannot_be_asked_are_refused(
    collection: Collection, embedder: HashingEmbedder
) -> None:
    with pytest.raises(RequestError, match="question is empty"):
        Retriever(collection, embedder).search(" ")
    with pytest.raises(RequestError, match="is not one of this collection"):
        Retriever(collection, HashingEmbedder("other")).search("a")
