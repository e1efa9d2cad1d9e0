"""What became of requests, over HTTP: the calls to models that this gateway has answered last, and those that run."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from airi.errors import EngineDeadError
from airi.gateway.admin.route import AdminCall
from airi.gateway.errors import ApiError
from airi.gateway.explaining import Traces
from airi.gateway.models import ModelRegistry
from airi.observability.requests import ChoiceRecord, ModelRecord, RequestRecord
from airi.transport import EngineHandle

__all__ = ["RequestAdmin"]

_MOST_SHOWN: Final = 100
_ENGINE_S: Final = 2.0
"""An engine answers between two steps; one that does not is not waited for."""
_NO_LINES: Final = "(the engine tells nothing: it has started again, or has overwritten what it decided)"
_NO_ANSWER: Final = "(the engine does not answer)"


class RequestAdmin:
    """Tells what became of a request and why. Never what was asked or answered."""

    def __init__(self, models: ModelRegistry, traces: Traces) -> None:
        self._models, self._recent = models, traces.recent

    async def show(self, call: AdminCall) -> RequestRecord:
        """One request, by its x-request-id, by this server's own id of it or by that of its answer.

        Raises a 404 where it is not kept here.
        """
        name = call.path["request"]
        found = self._recent.find(name)
        if found is None:
            raise ApiError(404, self._not_found(name), param="request", code="request_not_found")
        asked = [self._ask_engine(choice, model) for model in found.calls for choice in model.choices]
        await asyncio.gather(*asked)
        return found

    async def _ask_engine(self, choice: ChoiceRecord, model: ModelRecord) -> None:
        """Adds what the engine decided about an answer, where an engine was to make it."""
        client = self._client_of(model.model)
        if client is None or model.upstream is not None or model.sent_ms is None:
            return
        choice.engine = [_NO_ANSWER]
        with suppress(TimeoutError, EngineDeadError):
            async with asyncio.timeout(_ENGINE_S):
                choice.engine = await client.explain(choice.number) or [_NO_LINES]

    def _client_of(self, model: str) -> EngineHandle | None:
        """What runs a model; all that engines run has one handle, whichever version it is."""
        served = (each for each in self._models.all_versions if each.upstream is None)
        return next((each.client for each in served if each.name == model), None)

    def _not_found(self, name: str) -> str:
        most, size = self._recent.most, self._recent.most_bytes >> 20
        return (
            f"request {name[:_MOST_SHOWN]!r} is not known here: each gateway keeps the calls to models that it "
            f"answered itself in its memory, the last {most:,} of them and {size} MiB at most"
        )
