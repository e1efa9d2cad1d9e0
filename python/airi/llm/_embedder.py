"""A model that gives vectors, as collections take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import ModelInfo
from airi.retrieval import EmbeddingSpace
from airi.text import tokenizer_sha256

__all__ = ["LLMEmbedder"]


class LLMEmbedder:
    """An `airi.retrieval.Embedder`; its space is the one that a server has for the same model and chunker."""

    def __init__(
        self, info: ModelInfo, embed: Callable[[Sequence[str]], list[NDArray[np.float32]]], chunker: str
    ) -> None:
        self._embed = embed
        self.space = EmbeddingSpace(
            model=info.digest,
            tokenizer=tokenizer_sha256(info.path),
            pooling=info.pooling,
            dimension=info.vector_size,
            normalisation="l2" if info.normalizes else "none",
            chunker=chunker,
        )
        """Of its vectors."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, dimension] float32. Raises RequestError for a text that is empty or too long."""
        return np.array(self._embed(texts), np.float32).reshape(len(texts), self.space.dimension)
