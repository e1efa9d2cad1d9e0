"""Tools of a chat: what of the answer is calls, and forms that force them."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from airi.gateway.choice import Choice, Piece
from airi.gateway.declared import Declared, declared_form
from airi.gateway.errors import bad_field
from airi.gateway.forms import Form, made, requested_form
from airi.gateway.json_answers import JsonAnswer, json_answer
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import reason_of
from airi.gateway.openai.chat_answer import ChatAnswer
from airi.gateway.openai.schemas_chat import (
    AssistantMessage,
    CalledFunction,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    FunctionDelta,
    JsonObjectFormat,
    JsonSchemaFormat,
    MessageToolCall,
    NamedToolChoice,
    ToolCallDelta,
)
from airi.gateway.upstreams.calls import tool_form
from airi.structured_output import StructuredOutput
from airi.text import Tokenizer
from airi.text.tools import CallArguments, CallStart, Event, Function, ToolFormat, ToolParser, tool_format

__all__ = ["Calls", "ChatPlan", "ToolAnswer", "plan_chat", "plan_upstream"]

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24
_SHORT_IDS = {"mistral": 9, "upstream": 9}
"""Templates that refuse ids of another length when they come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan:
    """What becomes of one request's answer."""

    form: Form | None
    json: JsonAnswer | None = None
    """Where JSON stands in the answer."""
    format: ToolFormat | None = None
    """Where the answer may have calls."""
    names: frozenset[str] = frozenset()
    several: bool = True
    declared: Declared | None = None
    """What the answer is to be, whether or not the form enforces it."""

    def calls(self) -> Calls | None:
        """What finds the calls of one choice; None where there may be none."""
        if self.format is None:
            return None
        return Calls(
            self.format.parser(self.names),
            several=self.several,
            id_length=_SHORT_IDS.get(self.format.name, _ID_LENGTH),
        )


def plan_chat(request: ChatCompletionRequest, model: ServedModel) -> ChatPlan:
    """Raises a 400 for tools, choices and formats that do not go together."""
    form = _answer_form(request)
    plan = _plan(request, model, form)
    return _with_json(replace(plan, declared=_declared(plan, form, request)), form, request)


def plan_upstream(request: ChatCompletionRequest) -> ChatPlan:
    """The same where another server is to see to the form and writes the calls itself."""
    form = _answer_form(request)
    functions = [tool["function"] for tool in request.tools or ()]
    if not functions and (
        request.tool_choice == "required" or isinstance(request.tool_choice, NamedToolChoice)
    ):
        raise bad_field("tool_choice", "asks for a call, but there are no `tools`")
    plan = ChatPlan(form=form)
    if functions and request.tool_choice != "none":
        names = frozenset(each["name"] for each in functions)
        several = request.parallel_tool_calls is not False
        plan = ChatPlan(form=form, format=tool_form(), names=names, several=several)
    return _with_json(plan, form, request)


def _declared(plan: ChatPlan, form: Form | None, request: ChatCompletionRequest) -> Declared | None:
    declared = declared_form(form)
    if plan.format is None:
        return declared
    functions = [tool["function"] for tool in request.tools or ()]
    return Declared(
        answer=None if declared is None else declared.answer,
        format=plan.format,
        parameters={each["name"]: each.get("parameters") for each in functions},
        several=plan.several,
        must_call=request.tool_choice == "required" or isinstance(request.tool_choice, NamedToolChoice),
    )


def _with_json(plan: ChatPlan, form: Form | None, request: ChatCompletionRequest) -> ChatPlan:
    json = json_answer(form)
    if plan.format is not None:
        parameters = [tool["function"].get("parameters") for tool in request.tools or ()]
        enforced = plan.form is not None
        json = replace(
            json or JsonAnswer(),
            enforced=enforced,
            schemas=(*json.schemas, *parameters) if json else tuple(parameters) if enforced else (),
            format=plan.format,
            names=plan.names,
        )
    return replace(plan, json=json)


def _plan(request: ChatCompletionRequest, model: ServedModel, form: Form | None) -> ChatPlan:
    choice = request.tool_choice
    functions = [tool["function"] for tool in request.tools or ()]
    if not functions:
        if choice == "required" or isinstance(choice, NamedToolChoice):
            raise bad_field("tool_choice", "asks for a call, but there are no `tools`")
        return ChatPlan(form=form)
    if choice == "none":
        return ChatPlan(form=form)
    several = request.parallel_tool_calls is not False
    format_ = _format_of(model.tokenizer)
    plan = ChatPlan(
        form=form, format=format_, names=frozenset(each["name"] for each in functions), several=several
    )
    if isinstance(choice, NamedToolChoice):
        wanted = [i for i, each in enumerate(functions) if each["name"] == choice.function.name][:1]
        if not wanted:
            raise bad_field("tool_choice", "names a function that is not among `tools`")
        return replace(plan, form=_forced(format_, functions, wanted, several=False))
    every = list(range(len(functions)))
    if choice == "required":
        return replace(plan, form=_forced(format_, functions, every, several=several))
    if form is None:
        return replace(plan, form=_strict(format_, functions, several=several))
    schema = {"json_schema": form.structured.text, "json_object": '{"type": "object"}'}.get(
        form.structured.kind
    )
    if schema is None:
        raise bad_field(form.field, "cannot be combined with `tools`, unless `tool_choice` is 'none'")
    forced = _forced(format_, functions, every, several=several, answer=schema)
    return replace(
        plan, form=replace(forced, field=form.field, schema_fields=(*forced.schema_fields, form.field))
    )


@lru_cache(maxsize=64)
def _format_of(tokenizer: Tokenizer) -> ToolFormat:
    return tool_format(tokenizer)


def _answer_form(request: ChatCompletionRequest) -> Form | None:
    form = requested_form(request)
    wanted = request.response_format
    match wanted:
        case JsonObjectFormat():
            asked = made("response_format", StructuredOutput.json_object)
        case JsonSchemaFormat():
            schema = wanted.json_schema.schema
            field = "response_format.json_schema.schema"
            asked = made(field, lambda: StructuredOutput.json_schema(schema if schema is not None else {}))
        case _:
            return form
    if form is not None:
        raise bad_field("response_format", f"cannot be combined with {form.field}: a text has one form")
    return asked


def _forced(
    format_: ToolFormat,
    functions: list[dict[str, Any]],
    wanted: list[int],
    *,
    several: bool,
    answer: str | None = None,
    text: bool = False,
) -> Form:
    grammar = format_.grammar(
        [Function(name=functions[i]["name"], parameters=functions[i].get("parameters")) for i in wanted],
        several=several,
        answer=answer,
        text=text,
    )
    form = made("tools", lambda: StructuredOutput.grammar(grammar))
    return replace(form, schema_fields=tuple(f"tools[{i}].function.parameters" for i in wanted))


def _strict(format_: ToolFormat, functions: list[dict[str, Any]], *, several: bool) -> Form | None:
    """Text as the model likes, and calls as the functions that are `strict` want them; None where none is."""
    if not any(each.get("strict") for each in functions):
        return None
    free = [
        each if each.get("strict") else {"name": each["name"], "parameters": {"type": "object"}}
        for each in functions
    ]
    return _forced(format_, free, list(range(len(free))), several=several, text=True)


class Calls:
    """The calls of one choice, as far as they are there."""

    def __init__(self, parser: ToolParser, *, several: bool, id_length: int) -> None:
        self._parser = parser
        self._several = several
        self._id_length = id_length
        self.calls: list[MessageToolCall] = []
        self.opened = False
        self.logprobs: list[ChatLogprob] = []
        """Of tokens that nothing was sent for yet."""

    def events(self, text: str) -> list[Event]:
        """What is certain of an answer that goes on with `text`."""
        return self._kept(self._parser.push(text))

    def finish(self) -> list[Event]:
        """The rest, at the end of the answer."""
        return self._kept(self._parser.finish())

    def _kept(self, events: list[Event]) -> list[Event]:
        """Keeps count of calls; drops those beyond the first where there may be one alone."""
        kept = []
        for event in events:
            if not isinstance(event, str):
                if event.call and not self._several:
                    continue
                if isinstance(event, CallStart):
                    function = CalledFunction(name=event.name, arguments="")
                    self.calls.append(MessageToolCall(id=self._new_id(), function=function))
                else:
                    self.calls[event.call].function.arguments += event.text
            kept.append(event)
        return kept

    def _new_id(self) -> str:
        if self._id_length != _ID_LENGTH:
            return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self._id_length))
        return "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self._id_length))


class ToolAnswer(ChatAnswer):
    """A chat whose answers may have calls."""

    def __init__(self, request: ChatCompletionRequest, model: ServedModel, plan: ChatPlan) -> None:
        """`plan`: one with a format of calls."""
        super().__init__(request, model)
        self._plan = plan
        self._calls: dict[int, Calls] = {}

    def opening(self, choice: Choice) -> bytes:
        """Nothing yet: whether there is content is told with the role."""
        super().opening(choice)
        return b""

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """A content delta, or deltas of calls, per piece."""
        calls = self._of(choice)
        events = []
        for piece in pieces:
            calls.logprobs += self.entries(piece)
            events.append(self._deltas(choice, calls.events(piece.text)))
        return b"".join(events)

    def closing(self, choice: Choice) -> bytes:
        """What was held back, and an empty delta with the finish reason."""
        calls = self._of(choice)
        data = self._deltas(choice, calls.finish())
        chunks = self.chunks(choice)
        if not calls.opened:
            data += chunks.fields(ChatDelta(role="assistant", content=""))
        choice.shows_text = not calls.calls
        if calls.logprobs:  # of what ended the last call
            data += chunks.fields(ChatDelta(), ChatLogprobs(content=calls.logprobs))
        return data + chunks.last(self._reason(choice), choice.filter_results, choice.certificate)

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects text, calls and logprobs of one choice."""
        calls = self._of(choice)
        texts = self.texts(choice)
        for piece in pieces:
            calls.logprobs += self.entries(piece)
            texts += [event for event in calls.events(piece.text) if isinstance(event, str)]
        if choice.finish_reason is not None:
            texts += [event for event in calls.finish() if isinstance(event, str)]
            choice.shows_text = not calls.calls

    def message(self, choice: Choice) -> AssistantMessage:
        """With its calls; without content where there are none but calls."""
        calls, content = self._of(choice).calls, "".join(self.texts(choice))
        if not calls:
            return AssistantMessage(content=content)
        return AssistantMessage(content=content or None, tool_calls=calls)

    def logprobs_of(self, choice: Choice) -> list[ChatLogprob]:
        """Of all tokens, those of calls too."""
        return self._of(choice).logprobs

    def reason(self, choice: Choice) -> Any:
        """`tool_calls` where the model was through and there are some."""
        return self._reason(choice)

    def _reason(self, choice: Choice) -> Any:
        reason = reason_of(choice)
        return "tool_calls" if reason == "stop" and self._of(choice).calls else reason

    def _of(self, choice: Choice) -> Calls:
        calls = self._calls.get(choice.index) or self._plan.calls()
        if calls is None:
            raise ValueError("the plan has no format of calls")
        self._calls[choice.index] = calls
        return calls

    def _deltas(self, choice: Choice, events: list[Event]) -> bytes:
        calls, chunks = self._of(choice), self.chunks(choice)
        out = []
        for event in events:
            delta = self._delta(calls, event)
            if not calls.opened:
                calls.opened = True
                delta.role = "assistant"
                if not isinstance(event, str):
                    delta.content = None
            logprobs, calls.logprobs = calls.logprobs, []
            out.append(chunks.fields(delta, ChatLogprobs(content=logprobs) if logprobs else None))
        return b"".join(out)

    def _delta(self, calls: Calls, event: Event) -> ChatDelta:
        match event:
            case CallStart(call=index, name=name):
                call = ToolCallDelta(
                    index=index,
                    id=calls.calls[index].id,
                    type="function",
                    function=FunctionDelta(name=name, arguments=""),
                )
                return ChatDelta(tool_calls=[call])
            case CallArguments(call=index, text=text):
                return ChatDelta(
                    tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=text))]
                )
            case text:
                return ChatDelta(content=text)
