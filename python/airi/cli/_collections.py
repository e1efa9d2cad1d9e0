"""A collection of a config, and the server that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from airi.errors import AiriError, ConfigError

if TYPE_CHECKING:
    from airi._remote import OpenAIServer
    from airi.config import ConfigFile
    from airi.config.collections import Collection
    from airi.retrieval.ingest import Chunk, Chunker, Plan

__all__ = [
    "CONFIG",
    "CollectionArgument",
    "ConfigFlag",
    "KeyFlag",
    "ServedShelf",
    "UrlFlag",
    "chunker_of",
    "find_collection",
    "server_of",
]

CollectionArgument = Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection.")]
ConfigFlag = Annotated[Path, typer.Option("--config", help="The config that is served.")]
UrlFlag = Annotated[str | None, typer.Option(help="The server; left out: where the config serves.")]
KeyFlag = Annotated[str | None, typer.Option(help="A key of that server.", envvar="AIRI_API_KEY")]

CONFIG: Final = Path("airi.yaml")
_MOST_ROWS: Final = 2048
"""Of one request; what is written in one is there whole, or not at all."""


def find_collection(file: ConfigFile, name: str) -> Collection:
    """The collection that a config calls so; raises ConfigError."""
    found = {each.name: each for each in file.config.collections}
    if name not in found:
        there = ", ".join(list(found)[:20]) or "none"
        raise ConfigError(f"collection is {name!r}; {file.path} has: {there}", field="collection")
    return found[name]


def server_of(file: ConfigFile, url: str | None, api_key: str | None) -> OpenAIServer:
    """The server of a config, or the one at a URL."""
    from airi._remote import OpenAIServer

    server = file.config.server
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)
    return OpenAIServer(url or f"http://{host}:{server.port}", api_key)


def chunker_of(file: ConfigFile, collection: Collection) -> Chunker:
    """Cuts documents as the collection says, by the tokens of its embedder, whose tokenizer is fetched where it must.

    Raises CheckpointError for one that cannot be read.
    """
    from airi.config.options import source_path
    from airi.engine.hub import resolve_model_path
    from airi.retrieval.ingest import Chunker, EmbedderTokens

    model = next(each for each in file.config.models if collection.embedder in (each.name, *each.aliases))
    return Chunker(
        counter=EmbedderTokens.load(resolve_model_path(source_path(file, model.location))),
        max_tokens=collection.chunking.max_tokens,
        overlap_tokens=collection.chunking.overlap_tokens,
    )


class ServedShelf:
    """Chunks as rows of a server's collection, which embeds them: RequestError where it refuses what they have."""

    def __init__(self, server: OpenAIServer, name: str) -> None:
        self._server = server
        self._path = f"/collections/{quote(name, safe='')}"

    def sources(self) -> Sequence[str]:
        """Those that the collection has rows of."""
        return [str(each) for each in self._data("/sources")]

    def stored(self, source: str) -> Mapping[str, Mapping[str, Any]]:
        """The metadata of a source's rows, by their ids."""
        rows = self._data(f"/rows?source={quote(source, safe='')}")
        return {str(row["id"]): dict(row["metadata"]) for row in rows}

    def apply(self, plans: Sequence[Plan]) -> None:
        """Does all of the plans in one request, or, of a document with more chunks than one takes, in several."""
        rows = [_row(chunk) for plan in plans for chunk in (*plan.add, *plan.move)]
        remove = [name for plan in plans for name in plan.remove]
        # What is new comes first: killed in between, no text that a document has is missing.
        while rows or remove:
            written, rows = rows[:_MOST_ROWS], rows[_MOST_ROWS:]
            gone = [] if rows else remove[:_MOST_ROWS]
            remove = remove[len(gone) :]
            self._server.ask("POST", f"{self._path}/rows", {"rows": written, "remove": gone})

    def _data(self, path: str) -> list[Any]:
        try:
            return list(self._server.ask("GET", self._path + path)["data"])
        except (LookupError, TypeError):
            raise AiriError(f"{self._server.url} does not answer as AIRI does") from None


def _row(chunk: Chunk) -> dict[str, Any]:
    return {"id": chunk.id, "text": chunk.text, "metadata": chunk.metadata, "source": chunk.source}
