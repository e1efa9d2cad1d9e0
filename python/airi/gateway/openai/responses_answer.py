"""A chat's answer as a response, whole or as its events."""

from __future__ import annotations

import secrets
from typing import Any

from msgspec import UNSET

from airi.gateway import sse
from airi.gateway.choice import Choice
from airi.gateway.errors import ApiError
from airi.gateway.models import ServedModel
from airi.gateway.openai.blocks import Begun, Block, BlockAnswer, CallBlock, Grown, Step, TextBlock
from airi.gateway.openai.calls import reason_of
from airi.gateway.openai.logprobs import chat_logprobs
from airi.gateway.openai.responses_input import ResponseChat
from airi.gateway.openai.schemas_chat import ChatLogprob, TextFormat
from airi.gateway.openai.schemas_common import Usage
from airi.gateway.openai.schemas_responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    ShownText,
    ShownTool,
    Status,
)
from airi.gateway.openai.tool_calls import Calls
from airi.sampling_params import SamplingParams
from airi.transport import TokenLogprobs

__all__ = ["ResponseAnswer"]

_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by how its choice ended."""


class ResponseAnswer(BlockAnswer):
    """The one choice of a request as a response: an item per block, at least one."""

    def __init__(
        self, request: ResponseChat, model: ServedModel, calls: Calls | None, params: SamplingParams
    ) -> None:
        super().__init__(f"resp_{secrets.token_hex(24)}", request, model, calls)
        self._request = request
        self._params = params
        self._ids: dict[int, str] = {}
        self._numbers = iter(range(1 << 62))
        self._choice: Choice | None = None

    def head(self) -> bytes:
        """The response as it begins."""
        response = self._response("in_progress")
        return b"".join(
            [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]
        )

    def opening(self, choice: Choice) -> bytes:
        """Nothing: items begin with what is in them."""
        return b""

    def closing(self, choice: Choice) -> bytes:
        """The end of the last item, and of an empty one where there is none."""
        self._choice = choice
        data = super().closing(choice)
        if self.blocks:
            return data
        block = self._empty()
        return data + self._begun(block) + self._ended(block)

    def events(self, step: Step) -> bytes:
        """As `BlockAnswer.events`."""
        match step:
            case Begun(block=block):
                return self._begun(block)
            case Grown():
                return self._grown(step)
            case _:
                return self._ended(step.block)

    def ending(self, usage: Usage) -> bytes:
        """The whole response, with the token counts."""
        response = self._finished(usage)
        return self._event(f"response.{response.status}", response=response)

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The response as far as it is there, with what went wrong."""
        response = self._response("failed")
        code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(error.status, "server_error")
        response.error = ResponseError(code=code, message=error.message)  # type: ignore[arg-type]
        response.output = [self._item(block, "incomplete") for block in self.blocks]
        return self._event("response.failed", response=response)

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The response object."""
        self._choice = choices[0]
        if not self.blocks:
            self._empty()
        return sse.encode(self._finished(usage))

    def _empty(self) -> Block:
        block = TextBlock(0)
        self.blocks.append(block)
        return block

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = ResponseEvent(type=kind, sequence_number=next(self._numbers), **fields)  # type: ignore[arg-type]
        return sse.named_event(kind, event)

    def _begun(self, block: Block) -> bytes:
        item = self._item(block, "in_progress")
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if isinstance(block, CallBlock):
            return added
        # The block may have its first text already: that is told by the event behind these.
        return added + self._part_event("response.content_part.added", block, part=self._part(TextBlock(0)))

    def _grown(self, step: Grown) -> bytes:
        block = step.block
        if isinstance(block, CallBlock):
            return self._event(
                "response.function_call_arguments.delta",
                output_index=block.index,
                item_id=self._id(block),
                delta=step.text,
            )
        return self._part_event(
            "response.output_text.delta", block, delta=step.text, logprobs=self._entries(step.logprobs)
        )

    def _ended(self, block: Block) -> bytes:
        item = self._item(block, self._status(block))
        done = {"output_index": block.index, "item": item}
        if isinstance(block, CallBlock):
            text = self._event(
                "response.function_call_arguments.done",
                output_index=block.index,
                item_id=self._id(block),
                arguments=block.call.function.arguments,
            )
        else:
            entries = self._entries(block.logprobs)
            text = self._part_event("response.output_text.done", block, text=block.text, logprobs=entries)
            text += self._part_event("response.content_part.done", block, part=self._part(block))
        return text + self._event("response.output_item.done", **done)

    def _part_event(self, kind: str, block: Block, **fields: Any) -> bytes:
        return self._event(kind, output_index=block.index, item_id=self._id(block), content_index=0, **fields)

    def _id(self, block: Block) -> str:
        prefix = "fc" if isinstance(block, CallBlock) else "msg"
        return self._ids.setdefault(block.index, f"{prefix}_{secrets.token_hex(24)}")

    def _status(self, block: Block) -> Status:
        """Of a block that has ended: the last one of an answer that was cut is incomplete."""
        cut = self._choice is not None and reason_of(self._choice) in _CUT
        return "incomplete" if cut and block is self.blocks[-1] else "completed"

    def _item(self, block: Block, status: Status) -> OutputMessage | OutputCall:
        if isinstance(block, TextBlock):
            content = [] if status == "in_progress" else [self._part(block)]
            return OutputMessage(id=self._id(block), status=status, content=content)
        function = block.call.function
        return OutputCall(
            id=self._id(block),
            call_id=block.call.id,
            name=function.name,
            arguments="" if status == "in_progress" else function.arguments,
            status=status,
        )

    def _part(self, block: TextBlock) -> OutputText:
        part = OutputText(text=block.text, annotations=[])
        if self._request.logprobs:
            part.logprobs = self._entries(block.logprobs)
        return part

    def _entries(self, entries: list[TokenLogprobs]) -> list[ChatLogprob]:
        return chat_logprobs(self.vocabulary, entries).content or []

    def _finished(self, usage: Usage) -> Response:
        reason = _CUT.get("" if self._choice is None else reason_of(self._choice))
        response = self._response("completed" if reason is None else "incomplete")
        if reason is not None:
            response.incomplete_details = IncompleteDetails(reason=reason)  # type: ignore[arg-type]
        response.output = [self._item(block, self._status(block)) for block in self.blocks]
        if self._choice is not None:
            response.content_filter_results = self._choice.filter_results or UNSET
            response.certificate = self._choice.certificate or UNSET
        response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=usage.total_tokens,
        )
        return response

    def _response(self, status: Any) -> Response:
        given = self._request.given
        wanted = None if given.text is None else given.text.format
        return Response(
            id=self.id,
            created_at=self.created,
            status=status,
            error=None,
            incomplete_details=None,
            instructions=given.instructions,
            max_output_tokens=UNSET if given.max_output_tokens is None else given.max_output_tokens,
            metadata={} if given.metadata is None else given.metadata,
            model=self.served_as,
            output=[],
            parallel_tool_calls=given.parallel_tool_calls is not False,
            temperature=self._params.temperature,
            text=ShownText(format=TextFormat() if wanted is None else wanted),
            tool_choice=given.tool_choice or "auto",
            tools=[
                ShownTool(
                    name=tool.name,
                    description=tool.description,
                    parameters=tool.parameters,
                    strict=bool(tool.strict),
                )
                for tool in self._request.functions_given
            ],
            top_logprobs=UNSET if given.top_logprobs is None else given.top_logprobs,
            top_p=self._params.top_p,
            prompt_filter_results=self.prompt_results or UNSET,
        )
