"""A collection on this machine, and a server that makes its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from airi._remote import OpenAIServer
from airi.errors import AiriError
from airi.retrieval import Collection, EmbeddingSpace
from airi.retrieval.spaces import Vectors

__all__ = ["CollectionArgument", "FolderFlag", "KeyFlag", "ServerEmbedder", "UrlFlag", "check_alike"]

CollectionArgument = Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection.")]
FolderFlag = Annotated[Path, typer.Option("--folder", help="Where collections are kept.")]
UrlFlag = Annotated[str, typer.Option(help="A server with /v1/embeddings.")]
KeyFlag = Annotated[str | None, typer.Option(help="A key of that server.", envvar="AIRI_API_KEY")]

_BATCH: Final = 64
_ALIKE: Final = 0.99
"""Cosine of two vectors of one text by the same weights: other batches and devices round otherwise."""


class ServerEmbedder:
    """Vectors by a server's `/v1/embeddings`."""

    def __init__(self, server: OpenAIServer, space: EmbeddingSpace) -> None:
        self._server = server
        self.space = space

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[texts, dimension] float32; AiriError where the server does not answer."""
        found: list[list[float]] = []
        for first in range(0, len(texts), _BATCH):
            found += self._server.embed(self.space.model, texts[first : first + _BATCH])
        if any(len(each) != self.space.dimension for each in found):
            wrong = next(len(each) for each in found if len(each) != self.space.dimension)
            raise AiriError(
                f"{self._server.url}: vectors of {self.space.model} have {wrong} numbers; "
                f"those of the collection have {self.space.dimension}"
            )
        return np.array(found, np.float32).reshape(len(texts), self.space.dimension)


def check_alike(collection: Collection, embedder: ServerEmbedder, near: Vectors) -> None:
    """AiriError where the server has other weights by now than those that made the vectors: names tell nothing.

    The row next to a vector [dimension] is embedded again, and must have the vector that it has.
    """
    nearest = collection.search(near, space=embedder.space, k=1)
    if not nearest:
        return
    again = embedder.encode([nearest[0].text])[0]
    (hit,) = collection.search(again, space=embedder.space, k=1, filter={"id": nearest[0].id})
    if hit.score < _ALIKE:
        raise AiriError(
            f"{embedder.space.model} gives other vectors now than those that collection {collection.name} has: "
            "its weights have changed"
        )
