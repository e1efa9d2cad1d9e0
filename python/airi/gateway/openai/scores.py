"""`/v1/rerank` and `/v1/score`: how well texts go together.

A reranker, a classifier of one label, reads both texts at once, and its score is the sigmoid of its logit. Of a model
that gives vectors the score is the cosine of those of the two texts, each read by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET

from airi._scores import cosines, sigmoid
from airi.gateway import sse
from airi.gateway.errors import bad_field, decode_body
from airi.gateway.http import Scope
from airi.gateway.models import ServedModel
from airi.gateway.openai.pooled import PooledReply, PoolingCall, most_tokens
from airi.gateway.openai.schemas_pooling import (
    PoolingFields,
    PoolingUsage,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Score,
    ScoreRequest,
    ScoreResponse,
)
from airi.gateway.pooling import Text, read_pairs
from airi.gateway.tasks import check_scores
from airi.policy.decisions import Action

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Rerank", "Scores"]

_RERANK = msgspec.json.Decoder(RerankRequest)
_SCORE = msgspec.json.Decoder(ScoreRequest)
_REFUSED: Final = {
    "rank_fields": "a document is read as its `text`",
    "max_chunks_per_doc": "a document is read whole",
    "max_tokens_per_doc": "use `truncate_prompt_tokens`, which counts a document with its query",
}

S = TypeVar("S", bound=PoolingFields)


class _ScoreReply(PooledReply):
    """Scores of pairs, whichever way the model comes to them."""

    def __init__(self, prefix: str, request: PoolingFields, model: ServedModel, firsts: int) -> None:
        """`firsts`: how many of the texts are first ones; one goes with all others."""
        super().__init__(prefix, request, model)
        self._firsts = firsts

    def scores(self, numbers: NDArray[np.float32]) -> NDArray[np.float64]:
        """[pairs], of the pairs' logits or of all texts' vectors."""
        if self.model.info.task == "classify":
            return sigmoid(numbers[:, 0])
        return cosines(numbers[: self._firsts], numbers[self._firsts :])


class _Ranking(_ScoreReply):
    def __init__(self, request: RerankRequest, model: ServedModel, documents: Sequence[Text]) -> None:
        super().__init__("rerank", request, model, 1)
        self._request, self._documents = request, documents

    def body(self, vectors: NDArray[np.float32], usage: PoolingUsage) -> bytes:
        """As `PooledReply.body`: the best first, equals in the order they came."""
        scores = self.scores(vectors)
        best = np.argsort(-scores, kind="stable")[: self._request.top_n].tolist()
        shows = self._request.return_documents is not False
        return sse.encode(
            RerankResponse(
                id=self.id,
                model=self.served_as,
                results=[
                    RerankResult(
                        index=i,
                        relevance_score=float(scores[i]),
                        document=RerankDocument(text=str(self._documents[i][1])) if shows else UNSET,
                    )
                    for i in best
                ],
                prompt_filter_results=self.prompt_results or UNSET,
                usage=usage,
            )
        )


class _Scores(_ScoreReply):
    def body(self, vectors: NDArray[np.float32], usage: PoolingUsage) -> bytes:
        """As `PooledReply.body`."""
        scores = self.scores(vectors).tolist()
        return sse.encode(
            ScoreResponse(
                id=self.id,
                created=self.created,
                model=self.served_as,
                data=[Score(index=i, score=score) for i, score in enumerate(scores)],
                prompt_filter_results=self.prompt_results or UNSET,
                usage=usage,
            )
        )


class _PairCall(PoolingCall[S]):
    """An endpoint about pairs of texts."""

    action = Action.RERANK
    tasks = frozenset({"embed", "classify"})

    @abstractmethod
    def firsts(self, request: S) -> int:
        """How many of the texts are first ones; one goes with all others."""

    def check(self, request: S, model: ServedModel) -> None:
        """Raises a 400 for a classifier of several labels."""
        check_scores(model)

    async def tokens(
        self, request: S, model: ServedModel, texts: Sequence[Text]
    ) -> list[tuple[str, list[int]]]:
        """The pairs, where the model reads both texts at once."""
        if model.info.task == "embed" or model.reader is None:
            return await super().tokens(request, model, texts)
        count = self.firsts(request)
        firsts, seconds = texts[:count], texts[count:]
        pairs = [(firsts[i % count], second) for i, second in enumerate(seconds)]
        least = 2 + model.reader.least(is_pair=True)
        found = await read_pairs(model, pairs, most=most_tokens(request, model, least=least))
        return [(field, tokens) for (field, _), tokens in zip(seconds, found, strict=True)]


class Rerank(_PairCall[RerankRequest]):
    """`/v1/rerank`."""

    async def read(self, scope: Scope, body: bytes) -> RerankRequest:
        """As `Call.read`."""
        return decode_body(_RERANK, body, refused=_REFUSED)

    def texts(self, request: RerankRequest) -> list[Text]:
        """The query, and the documents."""
        documents = [
            (f"documents[{i}]" if isinstance(each, str) else f"documents[{i}].text", text)
            for i, (each, text) in enumerate(zip(request.documents, request.texts, strict=True))
        ]
        return [("query", request.query), *documents]

    def count(self, request: RerankRequest) -> int:
        """Of documents."""
        return len(request.documents)

    def firsts(self, request: RerankRequest) -> int:
        """The query."""
        return 1

    def reply(self, request: RerankRequest, model: ServedModel, texts: Sequence[Text]) -> PooledReply:
        """A ranking."""
        return _Ranking(request, model, texts[1:])


class Scores(_PairCall[ScoreRequest]):
    """`/v1/score`."""

    async def read(self, scope: Scope, body: bytes) -> ScoreRequest:
        """As `Call.read`."""
        return decode_body(_SCORE, body, refused={})

    def texts(self, request: ScoreRequest) -> list[Text]:
        """The first ones, and the second ones. Raises a 400 where they do not pair."""
        firsts, seconds = _listed("text_1", request.text_1), _listed("text_2", request.text_2)
        if len(firsts) not in (1, len(seconds)):
            accepted = f"one text, or as many as text_2 has, {len(seconds)}"
            raise bad_field("text_1", f"has {len(firsts)} texts; accepted: {accepted}")
        return [*firsts, *seconds]

    def count(self, request: ScoreRequest) -> int:
        """Of pairs."""
        return len(_listed("text_2", request.text_2))

    def firsts(self, request: ScoreRequest) -> int:
        """One, or as many as there are pairs."""
        return len(_listed("text_1", request.text_1))

    def reply(self, request: ScoreRequest, model: ServedModel, texts: Sequence[Text]) -> PooledReply:
        """Scores."""
        return _Scores("score", request, model, self.firsts(request))


def _listed(field: str, given: str | list[str]) -> list[Text]:
    if isinstance(given, str):
        return [(field, given)]
    return [(f"{field}[{i}]", text) for i, text in enumerate(given)]
