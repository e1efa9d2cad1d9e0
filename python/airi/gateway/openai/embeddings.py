"""`/v1/embeddings`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from airi._scores import check_dimensions, shortened
from airi.gateway import sse
from airi.gateway.errors import decode_body
from airi.gateway.http import Scope
from airi.gateway.models import ServedModel
from airi.gateway.openai.pooled import PooledReply, PoolingCall, inputs_of
from airi.gateway.openai.schemas_pooling import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    PoolingUsage,
)
from airi.gateway.pooling import Text
from airi.gateway.prompts import split_prompt
from airi.policy.decisions import Action

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Embeddings"]

_DECODER = msgspec.json.Decoder(EmbeddingRequest)


class _Vectors(PooledReply):
    """A vector for each text."""

    def __init__(self, request: EmbeddingRequest, model: ServedModel) -> None:
        super().__init__("embd", request, model)
        self._request = request

    def body(self, vectors: NDArray[np.float32], usage: PoolingUsage) -> bytes:
        """As `PooledReply.body`."""
        size = self._request.dimensions
        if size is not None:
            vectors = shortened(vectors, size, normalizes=self.model.info.normalizes)
        told: Sequence[list[float] | str]
        if self._request.encoding_format == "base64":
            told = [b64encode(row).decode() for row in vectors.astype("<f4")]
        else:
            told = vectors.tolist()
        return sse.encode(
            EmbeddingResponse(
                id=self.id,
                created=self.created,
                model=self.served_as,
                data=[Embedding(index=i, embedding=each) for i, each in enumerate(told)],
                prompt_filter_results=self.prompt_results or UNSET,
                usage=usage,
            )
        )


class Embeddings(PoolingCall[EmbeddingRequest]):
    """The endpoint."""

    action = Action.EMBED
    tasks = frozenset({"embed"})

    async def read(self, scope: Scope, body: bytes) -> EmbeddingRequest:
        """As `Call.read`."""
        return decode_body(_DECODER, body)

    def texts(self, request: EmbeddingRequest) -> list[Text]:
        """The inputs."""
        return inputs_of(request)

    def count(self, request: EmbeddingRequest) -> int:
        """Of inputs."""
        return len(split_prompt(request.input, field="input"))

    def check(self, request: EmbeddingRequest, model: ServedModel) -> None:
        """Raises a 400 for vectors of another size than the model can give."""
        info = model.info
        check_dimensions(request.dimensions, info.vector_size, info.matryoshka_dimensions)

    def reply(self, request: EmbeddingRequest, model: ServedModel, texts: Sequence[Text]) -> PooledReply:
        """Vectors."""
        return _Vectors(request, model)
