"""Collections of texts: rows, embedding spaces, search, and the context that is built of what was found.

Knows neither HTTP nor engines: who embeds and who counts tokens is given to it.
"""

from __future__ import annotations

from airi.retrieval.collection import Collection
from airi.retrieval.records import Hit, Row, Snapshot, Written
from airi.retrieval.reembedding import Progress, Reembedding
from airi.retrieval.retriever import Retriever, SearchOptions
from airi.retrieval.search.indexer import IndexOptions
from airi.retrieval.shelf import CollectionShelf
from airi.retrieval.spaces import Embedder, EmbeddingSpace

__all__ = [
    "Collection",
    "CollectionShelf",
    "Embedder",
    "EmbeddingSpace",
    "Hit",
    "IndexOptions",
    "Progress",
    "Reembedding",
    "Retriever",
    "Row",
    "SearchOptions",
    "Snapshot",
    "Written",
]
