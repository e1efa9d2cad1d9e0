"""`/v1/completions`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET

from airi.gateway import sse
from airi.gateway.certificates import Certificate
from airi.gateway.choice import Choice, Piece
from airi.gateway.declared import declared_form
from airi.gateway.errors import bad_field, decode_body
from airi.gateway.forms import requested_form
from airi.gateway.gate import call_context
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord, Scope
from airi.gateway.json_answers import json_answer
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import FINGERPRINT, Answer, ChunkedAnswer, ModelCall, reason_of
from airi.gateway.openai.inputs import screened_prompts
from airi.gateway.openai.logprobs import completion_logprobs
from airi.gateway.openai.schemas_common import Usage
from airi.gateway.openai.schemas_completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from airi.gateway.prompts import (
    ITEM_CHARACTERS,
    check_prompt,
    encode_now,
    in_thread_if_long,
    is_long,
    split_prompt,
)
from airi.gateway.sampling import sampling_params
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.gateway.upstreams.requests import ask_completion, check_length
from airi.policy.decisions import Action

C = TypeVar("C", bound=CompletionRequest)

_DECODER = msgspec.json.Decoder(CompletionRequest)
_MAX_CHOICES = 2048


class Prompt(NamedTuple):
    """One prompt as ids, and as the text that `echo` shows."""

    tokens: list[int]
    text: str | None


class CompletionAnswer(ChunkedAnswer):
    """The choices of one completion request as texts or chunks."""

    def __init__(self, request: CompletionRequest, model: ServedModel, prompts: list[Prompt]) -> None:
        super().__init__("cmpl", "text_completion", request, model)
        self._wants_logprobs = request.logprobs is not None
        self._echo = bool(request.echo)
        self._skip_special_tokens = request.skip_special_tokens is not False
        self._prompts = prompts
        self._n = request.n or 1
        self._chunks: dict[int, sse.TextChunks] = {}
        self._kept: dict[int, list[Piece]] = {}
        self._echoed: dict[int, str] = {}

    def opening(self, choice: Choice) -> bytes:
        """The prompt, where it is echoed."""
        chunks = self._chunks[choice.index] = sse.TextChunks(self.frame, choice.index)
        if not self._echo:
            return b""
        logprobs = self._prompt_logprobs(choice) if self._wants_logprobs else None
        return chunks.delta(self._echo_text(choice), logprobs)

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """One text per piece."""
        chunks = self._chunks[choice.index]
        if not self._wants_logprobs:
            return b"".join([chunks.delta(piece.text) for piece in pieces])
        return b"".join([chunks.delta(piece.text, self._logprobs(choice, [piece])) for piece in pieces])

    def closing(self, choice: Choice) -> bytes:
        """An empty text with the finish reason."""
        return self._chunks[choice.index].last(
            reason_of(choice), choice.filter_results, self._certificate(choice)
        )

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects the pieces of one choice."""
        self._kept.setdefault(choice.index, []).extend(pieces)

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The text_completion object."""
        return sse.encode(
            Completion(
                id=self.id,
                created=self.created,
                model=self.served_as,
                choices=[self._choice(choice) for choice in choices],
                prompt_filter_results=self.prompt_results or UNSET,
                usage=usage,
                system_fingerprint=FINGERPRINT,
            )
        )

    def _choice(self, choice: Choice) -> CompletionChoice:
        pieces = self._kept.get(choice.index, [])
        logprobs = self._logprobs(choice, pieces) if self._wants_logprobs else None
        if logprobs is not None and self._echo:
            logprobs = _joined(self._prompt_logprobs(choice), logprobs)
        return CompletionChoice(
            index=choice.index,
            text=self._echo_text(choice) + "".join([piece.text for piece in pieces]),
            logprobs=logprobs,
            finish_reason=reason_of(choice),
            content_filter_results=choice.filter_results or UNSET,
            certificate=self._certificate(choice) or UNSET,
        )

    def _certificate(self, choice: Choice) -> Certificate | None:
        certificate, echoed = choice.certificate, len(self._echo_text(choice))
        if certificate is None or not echoed:
            return certificate
        return msgspec.structs.replace(certificate, start=echoed)

    def _prompt(self, choice: Choice) -> Prompt:
        return self._prompts[choice.index // self._n]

    def _echo_text(self, choice: Choice) -> str:
        if not self._echo:
            return ""
        text = self._echoed.get(choice.index // self._n)
        if text is None:
            prompt = self._prompt(choice)
            text = prompt.text
            if text is None:
                text = self.model.tokenizer.decode(
                    prompt.tokens, skip_special_tokens=self._skip_special_tokens
                )
            self._echoed[choice.index // self._n] = text
        return text

    def _prompt_logprobs(self, choice: Choice) -> CompletionLogprobs:
        tokens = self._prompt(choice).tokens
        entries = choice.prompt_logprobs or [None] * len(tokens)
        stream = self.model.tokenizer.stream(skip_special_tokens=self._skip_special_tokens, keep_offsets=True)
        stream.push(tokens)
        return completion_logprobs(self.model.tokenizer, entries, tokens, stream.offsets)

    def _logprobs(self, choice: Choice, pieces: Iterable[Piece]) -> CompletionLogprobs:
        start = len(self._echo_text(choice))
        entries = [entry for piece in pieces for entry in piece.logprobs]
        offsets = [start + offset for piece in pieces for offset in piece.offsets]
        return completion_logprobs(self.model.tokenizer, entries, [entry.token for entry in entries], offsets)


class TextCall(ModelCall[C]):
    """An endpoint that continues texts, in whatever form they come and the answer goes."""

    action = Action.COMPLETION

    @abstractmethod
    def answer(self, request: C, model: ServedModel, prompts: list[Prompt]) -> Answer:
        """The form of the answer to a request that can be served."""

    def context(self, request: C, record: CallRecord, model: ServedModel) -> dict[str, Any]:
        """As `ModelCall.context`."""
        return call_context(
            record,
            max_tokens=request.max_tokens or model.info.max_model_len,
            n=len(split_prompt(request.prompt, field="prompt")) * (request.n or 1),
            stream=bool(request.stream),
            priority=request.priority,
        )

    async def start(self, request: C, model: ServedModel, generation: Generation) -> Answer:
        """Every prompt of the batch `n` times."""
        given, content = split_prompt(request.prompt, field="prompt"), generation.content
        n = request.n or 1
        if len(given) * n > _MAX_CHOICES:
            raise bad_field(
                "prompt", f"{len(given)} prompts with n={n}; at most {_MAX_CHOICES} choices in one request"
            )
        if isinstance(generation, UpstreamGeneration):
            return await self._ask_upstream(request, given, model, generation)
        if content is not None and content.input.exist:
            # Rules read nothing that is too long for an answer.
            await _read_prompts([item for item in given if is_long(model, len(item))], request, model)
            given = await screened_prompts(given, content)
        prompts = await _read_prompts(given, request, model)
        if generation.sight is not None:
            generation.sight.prompt_for = partial(_first_prompt, given[:1], request)
        generation.form = form = requested_form(request)
        if generation.sight is not None:
            generation.sight.declared = declared_form(form)
        if content is not None:
            content.json = json_answer(form)
        params = sampling_params(
            request,
            model,
            structured=None if form is None else form.structured,
            max_tokens=request.max_tokens,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
        )
        for prompt in prompts:
            for index in range(n):
                generation.add(
                    prompt.tokens,
                    params.for_choice(index),
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                )
        generation.choices_per_prompt = n
        return self.answer(request, model, prompts)

    async def _ask_upstream(
        self, request: C, given: list[str | list[int]], model: ServedModel, generation: UpstreamGeneration
    ) -> Answer:
        content = generation.content
        check_length(model, max(map(len, given)), "prompt")
        if content is not None:
            content.json = json_answer(requested_form(request))
            if content.input.exist and all(isinstance(item, str) for item in given):
                given = await screened_prompts(given, content)
        await ask_completion(request, given, model, generation)
        return self.answer(request, model, [Prompt([], None) for _ in given])


class Completions(TextCall[CompletionRequest]):
    """The endpoint."""

    async def read(self, scope: Scope, body: bytes) -> CompletionRequest:
        """As `ModelCall.read`."""
        return decode_body(_DECODER, body)

    def answer(self, request: CompletionRequest, model: ServedModel, prompts: list[Prompt]) -> Answer:
        """A text per choice."""
        return CompletionAnswer(request, model, prompts)


async def _read_prompts(
    given: list[str | list[int]], request: CompletionRequest, model: ServedModel
) -> list[Prompt]:
    """The prompts of texts or token ids; raises for the first that cannot be served."""
    size = sum(len(item) + ITEM_CHARACTERS for item in given) - ITEM_CHARACTERS
    return await in_thread_if_long(lambda: [_read_prompt(item, request, model) for item in given], size)


async def _first_prompt(
    given: list[str | list[int]], request: CompletionRequest, model: ServedModel
) -> list[int]:
    return (await _read_prompts(given, request, model))[0].tokens


def _read_prompt(item: str | list[int], request: CompletionRequest, model: ServedModel) -> Prompt:
    """The prompt of a text or of token ids; raises for what cannot be served."""
    if isinstance(item, str):
        special = request.add_special_tokens is not False
        prompt = Prompt(encode_now(model, item, add_special_tokens=special, field="prompt"), item)
    else:
        prompt = Prompt(item, None)
    check_prompt(model, prompt.tokens, request.max_tokens, field="prompt")
    return prompt


def _joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )
