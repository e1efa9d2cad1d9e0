"""`collections:` of a config: what is taken, and what each mistake is told."""

from __future__ import annotations

import pytest

from .conftest import config, lines

EMBEDDER = """\
version: 1
models:
  - {name: demo, source: airi-demo}
  - {name: minilm, source: /models/minilm, task: embed, aliases: [small]}
collections:
"""


def test_a_collection_needs_a_name_and_an_embedder_alone() -> None:
    (found,) = config(EMBEDDER + "  - {name: docs, embedder: minilm}\n").config.collections
    assert (found.name, found.embedder, found.sources, found.fields) == ("docs", "minilm", (), None)
    assert (found.chunking.max_tokens, found.chunking.overlap_tokens) == (256, 0)
    assert found.data_class == "unclassified"


def test_an_embedder_may_be_named_by_its_alias() -> None:
    (found,) = config(EMBEDDER + "  - {name: docs, embedder: small}\n").config.collections
    assert found.embedder == "small"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{embedder: minilm}", "collections[0].name"),
        ("{name: docs}", "collections[0].embedder"),
        ("{name: 'a/b', embedder: minilm}", "collections[0].name"),
        ("{name: ../x, embedder: minilm}", "collections[0].name"),
        ("{name: docs, embedder: minilm, fields: {team: text}}", "collections[0].fields.team"),
        ("{name: docs, embedder: minilm, chunking: {max_tokens: 8}}", "collections[0].chunking.max_tokens"),
    ],
)
def test_what_is_missing_or_wrong_is_named(given: str, told: str) -> None:
    (line,) = lines(EMBEDDER + f"  - {given}\n")
    assert line.startswith(f"6: {told} "), line


@pytest.mark.parametrize("embedder", ["demo", "nobody"])
def test_an_embedder_that_embeds_nothing_is_told_those_that_do(embedder: str) -> None:
    (line,) = lines(EMBEDDER + f"  - {{name: docs, embedder: {embedder}}}\n")
    assert line.startswith(
        f"6: collections[0].embedder is '{embedder}'; accepted: a model with `task: embed`: "
    )
    assert line.endswith("minilm, small")


def test_without_any_embedder_the_task_is_named() -> None:
    text = "version: 1\nmodels: [{name: demo, source: airi-demo}]\ncollections: [{name: d, embedder: demo}]\n"
    (line,) = lines(text)
    assert line.endswith("accepted: a model with `task: embed`")


def test_two_collections_of_one_file_name_are_refused() -> None:
    """Each is a file, and some disks know no upper case."""
    (line,) = lines(EMBEDDER + "  - {name: docs, embedder: minilm}\n  - {name: Docs, embedder: minilm}\n")
    assert line.startswith("7: collections[1].name is 'Docs'; accepted: a name that no other collection has")


def test_an_overlap_of_more_than_half_a_chunk_is_refused() -> None:
    (line,) = lines(
        EMBEDDER + "  - {name: docs, embedder: minilm, chunking: {max_tokens: 64, overlap_tokens: 33}}\n"
    )
    assert line.startswith(
        "6: collections[0].chunking.overlap_tokens is 33; accepted: at most 32, half of max_tokens"
    )


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("embedding_model", "embedder"), ("metadata", "fields"), ("chunk", "chunking")],
)
def test_names_of_other_tools_lead_to_ours(key: str, nearest: str) -> None:
    found = lines(EMBEDDER + f"  - {{name: docs, embedder: minilm, {key}: x}}\n")
    assert found[0].startswith(f"6: collections[0].{key} is an unknown key; the nearest is {nearest}; ")
