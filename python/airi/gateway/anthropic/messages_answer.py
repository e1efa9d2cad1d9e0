"""A chat's answer as a message, whole or as its events."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from msgspec import UNSET

from airi.gateway import sse
from airi.gateway.anthropic.schemas import (
    Message,
    MessageDelta,
    MessageEvent,
    MessageUsage,
    StopReason,
    TextBlock,
    ToolUseBlock,
)
from airi.gateway.choice import Choice
from airi.gateway.dialects import ANTHROPIC
from airi.gateway.errors import ApiError
from airi.gateway.models import ServedModel
from airi.gateway.openai.blocks import Begun, Block, BlockAnswer, CallBlock, Grown, Step
from airi.gateway.openai.calls import reason_of
from airi.gateway.openai.schemas_common import Usage
from airi.gateway.openai.tool_calls import Calls
from airi.gateway.openai.translated import TranslatedChat

__all__ = ["MessagesAnswer"]

_OBJECT: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MessagesAnswer(BlockAnswer):
    """The one choice of a request as a message."""

    def __init__(self, request: TranslatedChat, model: ServedModel, calls: Calls | None) -> None:
        super().__init__(f"msg_{secrets.token_hex(12)}", request, model, calls)
        self._max_tokens = request.max_tokens or 0
        self._ended: Choice | None = None

    def opening(self, choice: Choice) -> bytes:
        """The message as it begins."""
        usage = MessageUsage(
            input_tokens=choice.prompt_tokens - choice.cached_tokens,
            cache_read_input_tokens=choice.cached_tokens,
            output_tokens=choice.completion_tokens,
        )
        return _event("message_start", message=self._message([], usage))

    def closing(self, choice: Choice) -> bytes:
        """The end of the last block."""
        self._ended = choice
        return super().closing(choice)

    def events(self, step: Step) -> bytes:
        """As `BlockAnswer.events`."""
        match step:
            case Begun(block=CallBlock(call=call) as block):
                # The block may have grown already: that is told by the events behind this one.
                begun = ToolUseBlock(id=call.id, name=call.function.name, input={})
                return _event("content_block_start", index=block.index, content_block=begun)
            case Begun(block=block):
                return _event("content_block_start", index=block.index, content_block=TextBlock(text=""))
            case Grown(block=CallBlock() as block, text=text):
                delta = MessageDelta(type="input_json_delta", partial_json=text)
                return _event("content_block_delta", index=block.index, delta=delta)
            case Grown(block=block, text=text):
                delta = MessageDelta(type="text_delta", text=text)
                return _event("content_block_delta", index=block.index, delta=delta)
            case _:
                return _event("content_block_stop", index=step.block.index)

    def ending(self, usage: Usage) -> bytes:
        """Why the message has ended, with the token counts."""
        choice = self._ended
        if choice is None:
            raise ValueError("the choice has not ended")
        reason, sequence = self._reason(choice)
        stop = _event(
            "message_delta",
            delta=MessageDelta(stop_reason=reason, stop_sequence=sequence),
            usage=_usage(usage),
            content_filter_results=choice.filter_results or UNSET,
            certificate=choice.certificate or UNSET,
        )
        return stop + _event("message_stop")

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The error's body as an event."""
        return b"event: error\ndata: " + ANTHROPIC.error_body(error, request_id) + sse.END

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The message object."""
        [choice] = choices
        message = self._message([_block(block) for block in self.blocks], _usage(usage))
        message.stop_reason, message.stop_sequence = self._reason(choice)
        message.content_filter_results = choice.filter_results or UNSET
        message.certificate = choice.certificate or UNSET
        return sse.encode(message)

    def _message(self, content: list[TextBlock | ToolUseBlock], usage: MessageUsage) -> Message:
        return Message(
            id=self.id,
            model=self.served_as,
            content=content,
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
            prompt_filter_results=self.prompt_results or UNSET,
        )

    def _reason(self, choice: Choice) -> tuple[StopReason, str | None]:
        """Why the message has ended, and at which stop sequence."""
        match reason_of(choice):
            case "content_filter":
                return "refusal", None
            case "length":
                asked = choice.completion_tokens >= self._max_tokens
                return "max_tokens" if asked else "model_context_window_exceeded", None
            case _ if choice.stop_string is not None:
                return "stop_sequence", choice.stop_string
            case _:
                return "tool_use" if self.has_calls else "end_turn", None


def _event(kind: str, **fields: Any) -> bytes:
    return sse.named_event(kind, MessageEvent(type=kind, **fields))  # type: ignore[arg-type]


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _block(block: Block) -> TextBlock | ToolUseBlock:
    if not isinstance(block, CallBlock):
        return TextBlock(text=block.text)
    function = block.call.function
    return ToolUseBlock(id=block.call.id, name=function.name, input=_input(function.arguments))


def _input(arguments: str) -> dict[str, Any]:
    """The arguments, where they are a whole object. Their values stay JSON: no number is read and written again."""
    try:
        return _OBJECT.decode(arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return {}
