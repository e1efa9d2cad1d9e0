"""`/classify`: which label fits a text, and how likely each is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from airi._scores import probabilities
from airi.gateway import sse
from airi.gateway.errors import decode_body
from airi.gateway.http import Scope
from airi.gateway.models import ServedModel
from airi.gateway.openai.pooled import PooledReply, PoolingCall, inputs_of
from airi.gateway.openai.schemas_pooling import (
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    PoolingUsage,
)
from airi.gateway.pooling import Text
from airi.gateway.prompts import split_prompt
from airi.policy.decisions import Action

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Classify"]

_DECODER = msgspec.json.Decoder(ClassifyRequest)


class _Labels(PooledReply):
    def body(self, vectors: NDArray[np.float32], usage: PoolingUsage) -> bytes:
        """As `PooledReply.body`."""
        info = self.model.info
        likely = probabilities(vectors, is_multi_label=info.is_multi_label).tolist()
        return sse.encode(
            ClassifyResponse(
                id=self.id,
                created=self.created,
                model=self.served_as,
                data=[
                    Classification(
                        index=i,
                        label=info.labels[probs.index(max(probs))],
                        probs=probs,
                        num_classes=len(probs),
                    )
                    for i, probs in enumerate(likely)
                ],
                prompt_filter_results=self.prompt_results or UNSET,
                usage=usage,
            )
        )


class Classify(PoolingCall[ClassifyRequest]):
    """The endpoint."""

    action = Action.CLASSIFY
    tasks = frozenset({"classify"})

    async def read(self, scope: Scope, body: bytes) -> ClassifyRequest:
        """As `Call.read`."""
        return decode_body(_DECODER, body, refused={})

    def texts(self, request: ClassifyRequest) -> list[Text]:
        """The inputs."""
        return inputs_of(request)

    def count(self, request: ClassifyRequest) -> int:
        """Of inputs."""
        return len(split_prompt(request.input, field="input"))

    def reply(self, request: ClassifyRequest, model: ServedModel, texts: Sequence[Text]) -> PooledReply:
        """Labels."""
        return _Labels("classify", request, model)
