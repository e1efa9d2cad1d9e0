"""What the model made, in the protocol's form."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from msgspec import UNSET

from airi.gateway import sse
from airi.gateway.choice import Choice, Piece
from airi.gateway.dialects import KSERVE
from airi.gateway.errors import ApiError
from airi.gateway.kserve.input import OUTPUTS, TEXT_OUTPUT, KServeText
from airi.gateway.kserve.schemas import GenerateDetails, GenerateResponse, InferResponse, OutputTensor
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer, reason_of
from airi.gateway.openai.schemas_common import Usage

__all__ = ["GenerateAnswer", "InferAnswer"]


class GenerateAnswer(Answer):
    """The one text of a request, whole or in pieces."""

    def __init__(self, request: KServeText, model: ServedModel) -> None:
        super().__init__(secrets.token_hex(12), request, model)
        self._request = request
        self._texts: dict[int, list[str]] = {}

    def opening(self, choice: Choice) -> bytes:
        """Nothing: a stream begins with its first piece."""
        return b""

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """One event per piece."""
        return b"".join([sse.event(self._response(piece.text)) for piece in pieces])

    def closing(self, choice: Choice) -> bytes:
        """An empty text with the details."""
        return sse.event(self._response("", self.details(choice)))

    def ending(self, usage: Usage) -> bytes:
        """Nothing: the protocol's streams just end."""
        return b""

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The error's body as an event."""
        return b"data: " + KSERVE.error_body(error, request_id) + sse.END

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects the text of one choice."""
        self._texts.setdefault(choice.index, []).extend(piece.text for piece in pieces)

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The text with its details."""
        [choice] = choices
        return sse.encode(self._response(self.text(choice), self.details(choice)))

    def text(self, choice: Choice) -> str:
        """Of a choice that is over."""
        return "".join(self._texts.get(choice.index, ()))

    def details(self, choice: Choice) -> GenerateDetails:
        """Of a choice that is over."""
        return GenerateDetails(
            finish_reason=reason_of(choice),
            prompt_tokens=choice.prompt_tokens,
            completion_tokens=choice.completion_tokens,
            content_filter_results=choice.filter_results or UNSET,
            prompt_filter_results=self.prompt_results or UNSET,
            certificate=choice.certificate or UNSET,
        )

    def _response(self, text: str, details: GenerateDetails | None = None) -> GenerateResponse:
        return GenerateResponse(
            model_name=self.served_as,
            model_version=self.model.version,
            id=self._request.id or UNSET,
            text_output=text,
            details=details or UNSET,
        )


class InferAnswer(GenerateAnswer):
    """A text for each prompt, as tensors."""

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The tensors that were asked for."""
        return sse.encode(
            InferResponse(
                model_name=self.served_as,
                model_version=self.model.version,
                id=self._request.id or UNSET,
                outputs=[
                    OutputTensor(
                        name=name,
                        datatype=OUTPUTS[name],
                        shape=[len(choices)],
                        data=[self._value(name, choice) for choice in choices],
                    )
                    for name in self._request.outputs
                ],
            )
        )

    def _value(self, name: str, choice: Choice) -> str | int:
        if name == TEXT_OUTPUT:
            return self.text(choice)
        details = self.details(choice)
        match name:
            case "finish_reason":
                return details.finish_reason
            case "num_input_tokens":
                return details.prompt_tokens
            case "num_output_tokens":
                return details.completion_tokens
            case _:
                return sse.encode(details).decode()
