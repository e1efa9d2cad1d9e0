"""An embedder without a model: words, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from airi.retrieval import EmbeddingSpace
from airi.retrieval.spaces import Vectors


def space(name: str = "one", dimension: int = 16, **others: str) -> EmbeddingSpace:
    """A space of its own for each name."""
    return EmbeddingSpace(model=name, tokenizer="words", pooling="mean", dimension=dimension, **others)  # type: ignore[arg-type]


class HashingEmbedder:
    """Each word has a direction, drawn by its hash and the name of the space; a text is the mean of its words."""

    def __init__(self, name: str = "one", dimension: int = 16) -> None:
        self.space = space(name, dimension)
        self.texts = 0
        """That it was given."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.texts += len(texts)
        return np.stack([self._vector(text) for text in texts]).astype(np.float32)

    def _vector(self, text: str) -> Vectors:
        found = np.zeros(self.space.dimension)
        for word in text.lower().split():
            seed = hashlib.sha256(f"{self.space.model} {word}".encode()).digest()
            found += np.random.default_rng(list(seed)).standard_normal(self.space.dimension)
        unit: Vectors = (found / np.linalg.norm(found)).astype(np.float32)
        return unit
