"""The completions of one call, between the engine's outputs and the caller's results."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airi.errors import AiriError, EngineError, error_from_code
from airi.llm._results import Chunk, CompletionOutput, Logprob, RequestOutput, TokenLogprob
from airi.outputs import Output, TokenLogprobs
from airi.sampling_params import SamplingParams
from airi.text import Tokenizer

if TYPE_CHECKING:
    from airi.engine import Engine

__all__ = ["Batch", "Completion", "Prompt"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a call, tokenised, with the parameters of its completions."""

    text: str | None
    token_ids: list[int]
    params: SamplingParams


class Completion:
    """One completion while it runs: takes the engine's outputs, keeps text and ids."""

    __slots__ = ("_stream", "_tokenizer", "params", "prompt", "request", "result")

    def __init__(
        self, tokenizer: Tokenizer, prompt: RequestOutput, params: SamplingParams, request: int, index: int
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.params = params
        self.result = CompletionOutput(index=index, logprobs=None if params.logprobs is None else [])
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(
            prompt.prompt_token_ids,
            stop=params.stop,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.result.finish_reason is not None

    def advance(self, output: Output) -> Chunk:
        """What `output` adds. Raises the error that ended the request in the engine."""
        if output.error is not None:
            raise error_from_code(output.error.code, output.error.message, output.error.field)
        self._take_prompt(output)
        result, stream, tokens = self.result, self._stream, output.tokens
        shows_stop_id = self.params.include_stop_str_in_output or output.stop_token is None
        text = stream.push(tokens if shows_stop_id else tokens[:-1])
        if output.finish_reason is not None:
            text += stream.finish()
        if stream.stopped is not None:
            tokens = tokens[: stream.num_tokens - len(result.token_ids)]
            result.finish_reason, result.stop_reason = "stop", stream.stopped
        elif output.finish_reason is not None:
            result.finish_reason = output.finish_reason
            if output.stop_token in self.params.stop_token_ids:
                result.stop_reason = output.stop_token
        added = None
        if result.logprobs is not None:
            added = [self._position(entry) for entry in (output.logprobs or [])[: len(tokens)]]
            result.logprobs += added
        result.token_ids += tokens
        result.text += text
        return Chunk(
            request=self.request,
            index=result.index,
            text=text,
            token_ids=tokens,
            logprobs=added,
            finish_reason=result.finish_reason,
            stop_reason=result.stop_reason,
        )

    def _take_prompt(self, output: Output) -> None:
        if output.num_cached_tokens:
            self.prompt.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt.prompt_logprobs = [
                None if entry is None else self._position(entry) for entry in output.prompt_logprobs
            ]

    def _position(self, entry: TokenLogprobs) -> TokenLogprob:
        shown = self._tokenizer.token_text
        top = [
            Logprob(token_id=token, token=shown(token), logprob=logprob)
            for token, logprob in zip(entry.top_tokens, entry.top_logprobs, strict=True)
        ]
        return TokenLogprob(
            token_id=entry.token,
            token=shown(entry.token),
            logprob=entry.logprob,
            rank=entry.rank,
            top=tuple(top),
        )


class Batch:
    """All completions of one call: those that wait for room, those that run, and what they gave.

    *Thread safety*: none; `LLM` guards it.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
        self.results: list[RequestOutput] = []
        self.waiting: deque[Completion] = deque()
        """Not yet given to the engine, in order."""
        self.running: dict[int, Completion] = {}
        """By the engine's request id."""
        self.ready: deque[Chunk] = deque()
        """Given by the engine, not yet taken by the caller."""
        self.failure: AiriError | None = None
        """What ended the batch early."""
        for request, prompt in enumerate(prompts):
            result = RequestOutput(prompt=prompt.text, prompt_token_ids=prompt.token_ids, outputs=[])
            self.results.append(result)
            for index in range(prompt.params.n):
                params = prompt.params.for_choice(index)
                completion = Completion(tokenizer, result, params, request, index)
                result.outputs.append(completion.result)
                self.waiting.append(completion)

    @property
    def done(self) -> bool:
        """Whether every completion has ended, or one has failed."""
        return self.failure is not None or not (self.waiting or self.running)

    def submit(self, engine: Engine, request_id: int, model: str) -> None:
        """Gives the engine the completion that waits longest. Raises QueueFullError and other RequestErrors."""
        completion = self.waiting[0]
        engine.add_request(request_id, model, completion.prompt.prompt_token_ids, completion.params)
        self.waiting.popleft()
        self.running[request_id] = completion

    def advance(self, request_id: int, output: Output) -> bool:
        """Adds an output of the engine; returns whether the engine should drop the request."""
        completion = self.running[request_id]
        try:
            chunk = completion.advance(output)
        except AiriError as error:
            self.failure = error
            return True
        if output.finish_reason in ("cancelled", "error"):
            self.failure = EngineError(f"the engine gave up a request: {output.finish_reason}")
            return True
        self.ready.append(chunk)
        if completion.done:
            del self.running[request_id]
        return completion.done and output.finish_reason is None
