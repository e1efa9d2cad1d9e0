"""From a request to what an upstream is asked: the fields that were given, but for those that are the gateway's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from airi.errors import ContextLengthError
from airi.gateway.errors import ApiError, bad_field
from airi.gateway.models import ServedModel
from airi.gateway.openai.schemas_chat import ChatCompletionRequest
from airi.gateway.openai.schemas_common import SamplingFields
from airi.gateway.openai.schemas_completions import CompletionRequest
from airi.gateway.openai.tool_calls import ChatPlan, plan_upstream
from airi.gateway.prompts import ITEM_CHARACTERS, in_thread_if_long, is_long
from airi.gateway.sampling import sampling_params
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.sampling_params import SamplingParams

__all__ = ["ask_chat", "ask_completion"]

_SAMPLING: Final = (
    *("max_tokens", "min_tokens", "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "user", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
_CHAT: Final = (
    *("max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    *(
        "logprobs",
        "top_logprobs",
        "add_generation_prompt",
        "continue_final_message",
        "documents",
        "chat_template_kwargs",
    ),
)
_COMPLETION: Final = ("add_special_tokens",)
_TEMPLATE_TOKENS: Final = 512
"""What a chat template may put around a chat beside what it puts around messages."""


async def ask_chat(
    request: ChatCompletionRequest, model: ServedModel, generation: UpstreamGeneration, max_tokens: int | None
) -> tuple[ChatPlan, SamplingParams]:
    """Prepares a chat. Raises a 400 for what only an engine here can give."""
    plan = plan_upstream(request)
    logprobs = _logprobs(request, plan, model, generation)
    if generation.content is not None:
        generation.content.json = plan.json
    params = sampling_params(request, model, max_tokens=max_tokens, logprobs=logprobs)
    messages = [_with_texts(message) for message in request.messages]
    body = _body(request, model, generation, _SAMPLING + _CHAT) | {"messages": messages}
    given = [body.get(name) for name in ("messages", "tools", "documents", "response_format")]
    most = await _most_tokens(model, [_encoded(each).decode() for each in given if each is not None])
    most += ITEM_CHARACTERS * len(messages) + _TEMPLATE_TOKENS
    generation.ask(
        "/chat/completions",
        _encoded(body),
        [params.for_choice(i) for i in range(params.n)],
        prompt_tokens=min(most, model.info.max_model_len),
        form=plan.format,
    )
    return plan, params


def _logprobs(
    request: ChatCompletionRequest, plan: ChatPlan, model: ServedModel, generation: UpstreamGeneration
) -> int | None:
    """How many alternatives each token is to have; None without log-probabilities. Raises a 400 where nobody can tell
    whose they would be: of calls, whose tokens are not of the text, and of texts that rules may change.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_field("top_logprobs", "needs `logprobs: true`")
    if not request.logprobs:
        return None
    content = generation.content
    if plan.format is not None or (content is not None and content.output.exist):
        what = "tools" if plan.format is not None else "content rules for answers"
        raise bad_field(
            "logprobs",
            f"is not served together with {what} for {model.name}, which another server runs",
            code="unsupported_parameter",
        )
    return request.top_logprobs or 0


async def ask_completion(
    request: CompletionRequest,
    prompts: Sequence[str | list[int]],
    model: ServedModel,
    generation: UpstreamGeneration,
) -> None:
    """Prepares a completion of each prompt. Raises a 400 for what only an engine here can give."""
    for field in ("logprobs", "echo"):
        if getattr(request, field) not in (None, False):
            raise _only_here(field, model)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise bad_field(
            "prompt", f"must be text: {model.name} is run by another server, whose token ids differ"
        )
    if not all(texts):
        raise bad_field("prompt", "is empty; at least one token is needed", code="empty_prompt")
    params = sampling_params(request, model, max_tokens=request.max_tokens)
    body = _body(request, model, generation, _SAMPLING + _COMPLETION)
    body["prompt"] = texts[0] if len(texts) == 1 else texts
    most = await _most_tokens(model, texts) + len(texts)  # and what begins each
    generation.ask(
        "/completions",
        _encoded(body),
        [params.for_choice(i) for _ in texts for i in range(params.n)],
        prompt_tokens=min(most, model.info.max_model_len * len(texts)),
    )
    generation.choices_per_prompt = params.n


def check_length(model: ServedModel, characters: int, field: str) -> None:
    """Raises for so many characters that hardly any text of them can fit the window."""
    window = model.info.max_model_len
    if is_long(model, characters):
        what = f"prompt is too long: {characters} characters"
        raise ContextLengthError(
            f"{field}: {what}; this model's maximum context length is {window} tokens", field=field
        )


def _body(
    request: SamplingFields, model: ServedModel, generation: UpstreamGeneration, fields: Sequence[str]
) -> dict[str, Any]:
    if model.upstream is None:
        raise ValueError(f"{model.name} has no upstream")
    given = {name: msgspec.to_builtins(getattr(request, name)) for name in fields}
    body = {name: value for name, value in given.items() if value is not None}
    # A stream always: it can be given up as soon as it is too long, and tells of its end.
    options = model.upstream.options
    body |= {"model": options.model, "stream": True, "stream_options": {"include_usage": True}}
    if request.cache_salt is not None and options.cache_salt_key is not None:
        body["cache_salt"] = _salt(generation.principal.tenant, request.cache_salt, options.cache_salt_key)
    return body


def _salt(tenant: str, salt: str, key: str) -> str:
    """A tenant's salt as one that no other tenant has, and that nobody can make who does not know the key."""
    texts = [text.encode("utf-8", "surrogatepass") for text in (tenant, salt)]
    digest = blake2b(key=blake2b(key.encode()).digest(), digest_size=32)
    digest.update(len(texts[0]).to_bytes(8, "little") + b"".join(texts))
    return digest.hexdigest()


async def _most_tokens(model: ServedModel, texts: Sequence[str]) -> int:
    """At most so many tokens have these texts, by the model's tokenizer where it is known here."""
    encode = model.tokenizer.encode
    size = sum(map(len, texts))
    if not model.knows_tokens:
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return await in_thread_if_long(lambda: sum(len(encode(text)) for text in texts), size)


def _with_texts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose calls have their arguments as text, as the API has them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_with_text(call) for call in calls]}


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        return call
    return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry
        return json.dumps(value).encode()


def _only_here(field: str, model: ServedModel) -> ApiError:
    return bad_field(
        field,
        f"is not served for {model.name}, which another server runs",
        code="unsupported_parameter",
    )
