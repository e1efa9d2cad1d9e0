"""Content rules on what a request gives the model to read: every text of it, each by itself.

No match spans two messages. The text parts of one message do make one text for the model, so a match may span them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from airi.gateway.content import CallContent
from airi.gateway.errors import bad_field, content_refused
from airi.gateway.findings import Findings
from airi.gateway.prompts import in_thread_if_long

if TYPE_CHECKING:
    from airi.gateway.openai.schemas_chat import ChatCompletionRequest
    from airi.policy.content import ContentEvent

__all__ = ["screen_chat", "screened_prompts"]

_NAMED = frozenset({"content", "name", "tool_calls", "tool_call_id", "function", "arguments"})
_NAMED |= {"description", "parameters", "text", "refusal", "reasoning_content"}
"""Keys that errors may name: keys in general are text, too."""
_FREE = frozenset({"arguments", "parameters"})
"""Fields whose value is the client's own."""


async def screen_chat(request: ChatCompletionRequest, content: CallContent) -> None:
    """Applies the rules for prompts to a chat that was checked, but for judges, which are asked later.

    Raises a 400 for what they block.
    """
    if not content.input.exist:
        return
    screen = _Screen(content, 0)

    def work() -> None:
        request.messages = [screen.message(m, f"messages[{i}]") for i, m in enumerate(request.messages)]
        if request.tools is not None:
            request.tools = [screen.entry(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)]
        request.documents = screen.value(request.documents, "documents")
        request.chat_template_kwargs = screen.value(request.chat_template_kwargs, "chat_template_kwargs")

    try:
        await in_thread_if_long(work, content.request_bytes)
    except RecursionError:
        raise bad_field("messages", "or what comes with them is nested too deeply") from None
    content.judge_later(0, screen.seen, "messages")


async def screened_prompts(
    given: list[str | list[int]], content: CallContent, *, fields: list[str] | None = None
) -> list[str | list[int]]:
    """The prompts as the rules for them leave them; raises as `screen_chat`. `fields`: where each stands.

    Token ids stay as they are where their text does.
    """
    if fields is None:
        fields = ["prompt"] if len(given) == 1 else [f"prompt[{i}]" for i in range(len(given))]
    screens = [_Screen(content, i) for i in range(len(given))]

    def work() -> list[str | list[int]]:
        found = zip(screens, given, fields, strict=True)
        return [screen.prompt(prompt, field) for screen, prompt, field in found]

    screened = await in_thread_if_long(work, content.request_bytes)
    for i, (screen, field) in enumerate(zip(screens, fields, strict=True)):
        content.judge_later(i, screen.seen, field)
    return screened


class _Screen:
    """Applies rules to the texts of one prompt."""

    def __init__(self, content: CallContent, prompt: int) -> None:
        self._content, self._rules = content, content.input.patterns
        self._findings = content.prompts[prompt] = Findings()
        self._seen: list[str] = []

    @property
    def seen(self) -> str:
        """What the rules have left, a text a line."""
        return "\n".join(self._seen)

    def text(self, text: str, field: str) -> str:
        """What the rules leave of a text."""
        if self._rules is not None:
            filtered, blocked = self._rules.check(text)
            self._content.found("input", field, filtered.events, self._findings)
            if blocked is not None:
                raise content_refused(field, blocked.rule)
            text = filtered.text
        self._seen.append(text)
        return text

    def prompt(self, prompt: str | list[int], field: str) -> str | list[int]:
        """The same of a completion's prompt. Ids that no token has are refused later on."""
        if isinstance(prompt, str):
            return self.text(prompt, field)
        tokenizer = self._content.model.tokenizer
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        screened = self.text(text, field)
        return prompt if screened == text else tokenizer.encode(screened, add_special_tokens=False)

    def message(self, message: dict[str, Any], field: str) -> dict[str, Any]:
        """The same of a message, whose role is one of a few words."""
        screened: dict[str, Any] = {}
        for key, value in message.items():
            inner = _inner(field, key)
            match key, value:
                case "role", _:
                    screened[key] = value
                case "content", list():
                    screened[key] = self._parts(value, inner)
                case "tool_calls", list():
                    calls = [_with_arguments(call) for call in value]
                    screened[key] = [self.entry(call, f"{inner}[{i}]") for i, call in enumerate(calls)]
                case _:
                    screened[self._key(key, field)] = self.value(value, inner)
        return screened

    def entry(self, entry: dict[str, Any], field: str) -> dict[str, Any]:
        """The same of a tool, of a call of one, or of a part of a message: their type is one of a few words."""
        return {
            key: value if key == "type" else self.value(value, _inner(field, key))
            for key, value in entry.items()
        }

    def value(self, value: Any, field: str) -> Any:
        """The same of JSON: of every text, key and number in it."""
        match value:
            case str():
                return self.text(value, field)
            case bool() | None:
                return value
            case int() | float():
                written = json.dumps(value)
                screened = self.text(written, field)
                return value if screened == written else screened
            case list():
                return [self.value(each, _inner(field, i)) for i, each in enumerate(value)]
            case _:
                return {
                    self._key(key, field): self.value(each, _inner(field, key)) for key, each in value.items()
                }

    def _key(self, key: str, field: str) -> str:
        return key if _inner(field, key) != field else self.text(key, field)

    def _parts(self, parts: list[Any], field: str) -> list[Any]:
        screened = [self.entry(part, f"{field}[{i}]") for i, part in enumerate(parts)]
        texts = [part.get("refusal" if part.get("type") == "refusal" else "text") or "" for part in screened]
        if self._rules is None:
            return screened
        filtered, blocked = self._rules.check("".join(texts))
        ends = list(accumulate(len(text.encode("utf-8", "surrogatepass")) for text in texts))
        spanning = [event for event in filtered.events if _spans(event, ends)]
        self._content.found("input", field, spanning, self._findings)
        if blocked is not None:
            raise content_refused(field, blocked.rule)
        if any(event.action.holds for event in spanning):
            return [{"type": "text", "text": filtered.text}]
        return screened


def _spans(event: ContentEvent, ends: list[int]) -> bool:
    """Whether a match goes on behind the first end in it."""
    after = bisect_right(ends, event.start)
    return after < len(ends) and ends[after] < event.end


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as templates see them, an object in place of its text: escapes hide nothing."""
    function = call["function"]
    arguments = function["arguments"]
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return call
    if not isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": value}}


def _inner(field: str, key: str | int) -> str:
    """The field of what stands under a key or number, as far as it is not the client's own words."""
    if field.rpartition(".")[2] in _FREE:
        return field
    if isinstance(key, int):
        return f"{field}[{key}]"
    return f"{field}.{key}" if key in _NAMED else field
