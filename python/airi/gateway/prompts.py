"""From a request's text to token ids, without holding up the event loop and without reading what cannot fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from airi.errors import ContextLengthError
from airi.gateway.errors import bad_field
from airi.gateway.models import ServedModel

T = TypeVar("T")

# More text is tokenised in a thread, where the tokenizer does without the GIL; 4k characters take about 1 ms.
_INLINE_CHARACTERS = 4096
# What one more text or message costs beside its characters, as so many characters.
ITEM_CHARACTERS = 64
# A longer text than this many characters per token of the window is first tokenised in part: ordinary text has
# 3 to 5, so nearly all such prompts are refused after a small part of the work.
_PROBE_CHARACTERS_PER_TOKEN = 16
# The request has fields of its own for them.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
# Cutting a text may change the tokens at the cut, never this many.
_PROBE_SLACK = 64


async def in_thread_if_long(work: Callable[[], T], characters: int) -> T:
    """What `work` gives, which takes about as long as tokenising this many characters."""
    return work() if characters <= _INLINE_CHARACTERS else await asyncio.to_thread(work)


async def encode_text(model: ServedModel, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
    """As `encode_now`, in a thread where the text is long."""

    def encode() -> list[int]:
        return encode_now(model, text, add_special_tokens=add_special_tokens, field=field)

    return await in_thread_if_long(encode, len(text))


def split_prompt(prompt: str | list[str | int | list[int]], *, field: str) -> list[str | list[int]]:
    """The texts of a request: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_field(field, "is an empty list", code="empty_prompt")
    kind = type(prompt[0])
    if any(type(item) is not kind for item in prompt):
        raise bad_field(field, "must be a text, token ids, a list of texts or a list of token ids; not mixed")
    if kind is int:
        return [[item for item in prompt if isinstance(item, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def encode_now(model: ServedModel, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
    """Token ids of `text`; raises ContextLengthError naming `field` where that is clearly too long for the window."""
    probe(model, text, field)
    return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def is_long(model: ServedModel, characters: int) -> bool:
    """Whether hardly any text of so many characters fits the window: then this is best found out first."""
    return characters > model.window * _PROBE_CHARACTERS_PER_TOKEN + _INLINE_CHARACTERS


def probe(model: ServedModel, text: str, field: str) -> None:
    """Raises where the beginning of a very long text alone exceeds the window."""
    if not is_long(model, len(text)):
        return
    window = model.window
    part = window * _PROBE_CHARACTERS_PER_TOKEN
    count = len(model.tokenizer.encode(text[:part], add_special_tokens=False))
    if count > window + _PROBE_SLACK:
        raise ContextLengthError(
            f"{field}: prompt is too long: the first {part} of {len(text)} characters are {count} tokens; "
            + _limit(window),
            field=field,
        )


def _limit(window: int) -> str:
    """By these words and "prompt is too long" clients such as litellm and langchain know what is wrong."""
    return f"this model's maximum context length is {window} tokens"


class ChatPrompt(Protocol):
    """The fields that chat and tokenise requests share."""

    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    documents: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any] | None


async def render_chat(
    model: ServedModel, messages: Sequence[Mapping[str, Any]], request: ChatPrompt, *, field: str
) -> list[int]:
    """Token ids of a chat put into the model's template; raises TemplateError for what it refuses.

    `field` is as for `encode_text`.
    """
    render = chat_renderer(model, request)
    size = sum(len(content) for m in messages if isinstance(content := m.get("content"), str | list))
    try:
        text = await in_thread_if_long(lambda: render(messages), size + ITEM_CHARACTERS * (len(messages) - 1))
    except RecursionError:
        raise bad_field("messages", "or what comes with them is nested too deeply") from None
    return await encode_text(model, text, add_special_tokens=False, field=field)


def chat_renderer(model: ServedModel, request: ChatPrompt) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    """What puts messages into the model's template, with all else that a request says of its prompt."""
    kwargs = dict(request.chat_template_kwargs or {})
    for name in kwargs:
        if name in _RESERVED:
            raise bad_field("chat_template_kwargs", f"may not set {name[:100]!r}")
    continues = bool(request.continue_final_message)
    opens = request.add_generation_prompt

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        return model.tokenizer.render_chat(
            messages,
            request.tools,
            add_generation_prompt=not continues if opens is None else opens,
            continue_final_message=continues,
            documents=request.documents,
            chat_template_kwargs=kwargs,
        )

    return render


async def decode_tokens(model: ServedModel, tokens: list[int], *, skip_special_tokens: bool) -> str:
    """The text of a request's `tokens`; raises for ids that no token has, and for more than the window takes."""
    window = model.window
    if len(tokens) > window:
        raise ContextLengthError(f"tokens: has {len(tokens)} token ids; {_limit(window)}", field="tokens")
    _check_ids(model, tokens, field="tokens")

    def decode() -> str:
        return model.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    return await in_thread_if_long(decode, len(tokens))


def check_prompt(model: ServedModel, tokens: Sequence[int], max_tokens: int | None, *, field: str) -> None:
    """Raises for a prompt that is empty, holds unknown ids, or leaves no room for what is asked for."""
    window = model.info.max_model_len
    if not tokens:
        raise bad_field(field, "is empty; at least one token is needed", code="empty_prompt")
    if len(tokens) + (max_tokens or 1) > window:
        count = f"has {len(tokens)} tokens and max_tokens asks for {max_tokens} more"
        if len(tokens) >= window:
            count = f"prompt is too long: {len(tokens)} tokens"
        raise ContextLengthError(f"{field}: {count}; {_limit(window)}", field=field)
    _check_ids(model, tokens, field=field)


def check_text(model: ServedModel, tokens: Sequence[int], *, field: str) -> None:
    """Raises for a text of more tokens than a model reads whole, or with unknown ids."""
    if len(tokens) > model.window:
        raise ContextLengthError(
            f"{field}: prompt is too long: {len(tokens)} tokens; {_limit(model.window)}; "
            "truncate_prompt_tokens: -1 cuts what is longer",
            field=field,
        )
    _check_ids(model, tokens, field=field)


def _check_ids(model: ServedModel, tokens: Sequence[int], *, field: str) -> None:
    highest = max(tokens, default=0)
    if highest >= model.info.vocab_size:
        raise bad_field(field, f"token id {highest} is outside the vocabulary of {model.info.vocab_size}")
