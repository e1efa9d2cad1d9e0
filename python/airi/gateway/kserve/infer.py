"""`/v2/models/{model}/infer`, `/generate` and `/generate_stream`: completions in the protocol's form."""

from __future__ import annotations

from functools import partial

from airi.gateway.errors import bad_field
from airi.gateway.gate import Gate
from airi.gateway.http import Scope, header, record_of
from airi.gateway.kserve.answer import GenerateAnswer, InferAnswer
from airi.gateway.kserve.input import KServeText, read_generate, read_infer
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer
from airi.gateway.openai.completions import Prompt, TextCall
from airi.gateway.openai.translated import translated

__all__ = ["Generate", "Infer"]

_BINARY = b"inference-header-content-length"


class Infer(TextCall[KServeText]):
    """`/infer`: a text for each prompt of a batch."""

    async def read(self, scope: Scope, body: bytes) -> KServeText:
        """As `ModelCall.read`."""
        if header(scope, _BINARY) is not None:
            raise bad_field(_BINARY.decode(), "binary tensors are not taken; accepted: tensors as JSON")
        return await translated(partial(read_infer, model=_pinned(self._gate, scope)), body)

    def answer(self, request: KServeText, model: ServedModel, prompts: list[Prompt]) -> Answer:
        """Tensors."""
        return InferAnswer(request, model)


class Generate(TextCall[KServeText]):
    """`/generate`, or `/generate_stream`: a text for one prompt."""

    def __init__(self, gate: Gate, *, body_limit: int, streams: bool) -> None:
        super().__init__(gate, body_limit=body_limit)
        self._streams = streams

    async def read(self, scope: Scope, body: bytes) -> KServeText:
        """As `ModelCall.read`."""
        model = _pinned(self._gate, scope)
        return await translated(partial(read_generate, model=model, stream=self._streams), body)

    def answer(self, request: KServeText, model: ServedModel, prompts: list[Prompt]) -> Answer:
        """A text, or its pieces."""
        return GenerateAnswer(request, model)


def _pinned(gate: Gate, scope: Scope) -> str:
    """The model of a path, in the version that it names, if any."""
    places = scope["path_params"]
    if "version" in places:
        gate.pin(record_of(scope), places["model"], places["version"])
    return str(places["model"])
