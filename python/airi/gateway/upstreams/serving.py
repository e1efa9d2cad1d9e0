"""From options to models of upstreams that can be called, until the server ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from airi.gateway.metrics import Metrics
from airi.gateway.models import ServedModel
from airi.gateway.options import UpstreamModel
from airi.text import Tokenizer
from airi.transport import ModelInfo
from airi.transport.absent import NoEngine

if TYPE_CHECKING:
    from airi.upstreams.client import UpstreamClient

__all__ = ["in_places", "open_upstreams"]

_ANY_TOKEN = 2**31 - 1


@asynccontextmanager
async def open_upstreams(
    options: Sequence[UpstreamModel], metrics: Metrics
) -> AsyncIterator[list[ServedModel]]:
    """The models of upstreams, whose connections are closed when the block ends.

    Whether they can be reached is not awaited: that is for each call, for /ready and for metrics. Raises
    CheckpointError for a tokenizer that cannot be read.
    """
    if not options:
        yield []
        return
    from airi.gateway.upstreams.metrics import UpstreamMetrics
    from airi.upstreams.client import UpstreamClient

    told = UpstreamMetrics(metrics)
    async with AsyncExitStack() as stack:
        served = []
        clients: list[UpstreamClient] = []
        for each in options:
            client = UpstreamClient(each.options, told.of(each.options.name))
            served.append(_model(each, client, metrics))
            await client.open()
            stack.push_async_callback(client.close)
            clients.append(client)
        told.watch(clients)
        yield served


def in_places(
    models: Iterable[ServedModel], upstreams: Sequence[ServedModel], options: Sequence[UpstreamModel]
) -> list[ServedModel]:
    """Models of the engine with those of upstreams between them, as the config has them."""
    whole = list(models)
    for model, each in zip(upstreams, options, strict=True):
        whole.insert(each.place, model)
    return whole


def _model(given: UpstreamModel, client: UpstreamClient, metrics: Metrics) -> ServedModel:
    name = given.options.name
    tokenizer = Tokenizer.of_bytes() if given.tokenizer is None else Tokenizer.load(given.tokenizer)
    info = ModelInfo(
        name=name,
        aliases=given.aliases,
        path="",
        max_model_len=given.max_model_len,
        vocab_size=_ANY_TOKEN,
    )
    return ServedModel(
        info=info,
        tokenizer=tokenizer,
        client=NoEngine(),
        metrics=metrics.model(name),
        created=int(time.time()),
        upstream=client,
        knows_tokens=given.tokenizer is not None,
    )
