"""`collections`: rows of texts that are found by what they mean, and who embeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from airi.config.values import FilePath, Name, Part, Text, Whole

if TYPE_CHECKING:
    from airi.config.document import Path
    from airi.config.schema import Config

__all__ = ["Chunking", "Collection", "wrong_collections"]

MOST_CHUNK = 8192


class Chunking(Part):
    """How documents are cut, in tokens of the embedder."""

    foreign: ClassVar[dict[str, str]] = {
        "chunk_size": "max_tokens",
        "chunk_overlap": "overlap_tokens",
        "overlap": "overlap_tokens",
    }

    max_tokens: Annotated[int, Whole(32, MOST_CHUNK)] = 256
    """Tokens of a chunk at most, special ones included."""
    overlap_tokens: Annotated[int, Whole(0, MOST_CHUNK // 2)] = 0
    """Tokens that a chunk repeats of the one before."""


class Collection(Part):
    """Rows, and one space of vectors for each version of the embedder."""

    foreign: ClassVar[dict[str, str]] = {
        "embedding_model": "embedder",
        "model": "embedder",
        "metadata": "fields",
        "chunk": "chunking",
    }

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """What requests call it: letters, digits, and . _ - behind the first, at most 64."""
    embedder: Name
    """The model that embeds rows and queries."""
    path: FilePath = "./collections"
    """The folder of its file."""
    sources: tuple[FilePath, ...] = Field(default=(), strict=False)
    """Files and folders that `airi ingest` reads where it is given none."""
    data_class: Text = "unclassified"
    """What policies may ask of it."""
    fields: Mapping[Text, Literal["string", "number", "boolean"]] | None = None
    """Fields of rows' metadata; left out: any."""
    chunking: Chunking = Chunking()
    """How documents are cut."""


def wrong_collections(config: Config, report: Callable[..., None]) -> None:
    """Names that are there twice, and embedders that are none."""
    tasks = {name: model.task for model in config.models for name in (model.name, *model.aliases)}
    embedders = [name for name, task in tasks.items() if task == "embed"]
    seen: set[str] = set()
    for i, collection in enumerate(config.collections):
        at: Path = ("collections", i)
        if collection.name.casefold() in seen:  # each is a file, and some disks know no upper case
            report((*at, "name"), "a name that no other collection has, in upper or lower case")
        seen.add(collection.name.casefold())
        if collection.embedder not in embedders:
            known = ", ".join(embedders[:20])
            accepted = f"a model with `task: embed`: {known}" if known else "a model with `task: embed`"
            report((*at, "embedder"), accepted)
        most = collection.chunking.max_tokens
        if collection.chunking.overlap_tokens * 2 > most:
            report((*at, "chunking", "overlap_tokens"), f"at most {most // 2}, half of max_tokens")
