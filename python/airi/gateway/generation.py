"""Running the choices of one HTTP request: tokens come from the engine, pieces of text go to the encoder.

The engine's outputs are dropped into a list by a callback; the handler takes all that is there at once, so that the
tokens of several steps leave in one write when the client or this process is slower than the engine.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import NamedTuple

from airi.errors import EngineDeadError, RequestError
from airi.gateway.errors import ApiError
from airi.gateway.forms import Form
from airi.gateway.metrics import ChoiceTimer, now
from airi.gateway.models import ServedModel
from airi.policy import Principal
from airi.sampling_params import SamplingParams
from airi.text import TextStream
from airi.transport import GenerateRequest, Output, TokenLogprobs, error_of


class Piece(NamedTuple):
    """Text that is certain, with the logprobs of the tokens that begin in it (and where they begin)."""

    text: str
    logprobs: list[TokenLogprobs]
    offsets: list[int]


class Choice:
    """One completion as it grows. `finish_reason` is set with the last piece.

    *Invariant*: the texts of all pieces joined are the completion's text; nothing comes after the finish.
    """

    __slots__ = (
        "_logprobs",
        "_shown",
        "_text",
        "_timer",
        "cached_tokens",
        "completion_tokens",
        "finish_reason",
        "index",
        "params",
        "prompt_logprobs",
        "prompt_tokens",
        "request_id",
    )

    def __init__(self, index: int, request: GenerateRequest, text: TextStream, timer: ChoiceTimer) -> None:
        self.index = index
        self.request_id = request.request_id
        self.params = request.params
        self.prompt_tokens = request.num_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._text = text
        self._timer = timer
        self._logprobs: list[TokenLogprobs] = []
        self._shown = 0

    def advance(self, output: Output, arrived: float, at: float, *, per_token: bool) -> list[Piece]:
        """What `output` adds; `per_token` cuts it into one piece per token that completes some text."""
        tokens = output.tokens
        if tokens:
            self._timer.tokens(len(tokens), at, arrived)
        if output.num_prompt_tokens:
            self.cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        hidden = output.stop_token is not None and not self.params.include_stop_str_in_output
        visible = tokens[:-1] if hidden and tokens else tokens
        if output.logprobs is not None:
            self._logprobs.extend(output.logprobs[: len(visible)])
        pieces: list[Piece] = []
        if per_token and len(visible) > 1:
            for token in visible:
                self._take(self._text.push((token,)), pieces)
        elif visible:
            self._take(self._text.push(visible), pieces)
        self.completion_tokens = self._text.num_tokens + (len(tokens) - len(visible))
        if self._text.stopped is not None:
            self.completion_tokens = self._text.num_tokens
            self._finish("stop", pieces)
        elif output.finish_reason is not None:
            self._finish(output.finish_reason, pieces)
        return pieces

    def _take(self, text: str, pieces: list[Piece]) -> None:
        if not text:
            return
        if self.params.logprobs is None:
            pieces.append(Piece(text, [], []))
            return
        end = self._shown
        offsets = self._text.offsets
        while end < len(offsets) and offsets[end] < self._text.num_characters:
            end += 1
        self._show(text, end, pieces)

    def _show(self, text: str, end: int, pieces: list[Piece]) -> None:
        start, self._shown = self._shown, end
        pieces.append(Piece(text, self._logprobs[start:end], self._text.offsets[start:end]))

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        self.finish_reason = reason
        rest = self._text.finish()
        if self.params.logprobs is None:
            if rest:
                pieces.append(Piece(rest, [], []))
            return
        end = self._text.num_visible_tokens
        if rest or end > self._shown:
            self._show(rest, end, pieces)


class Generation:
    """All choices of one HTTP request in the engine. Closing it cancels what still runs.

    *Thread safety*: none; event loop only.
    *Invariant*: a request the engine still runs for it is in `_open`.
    """

    def __init__(self, model: ServedModel, principal: Principal, *, arrived: float) -> None:
        self._model = model
        self._principal = principal
        self._arrived = arrived
        self._ready: list[tuple[Choice, Output]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._open: set[int] = set()
        self._prepared: list[tuple[GenerateRequest, Choice]] = []
        self.choices: list[Choice] = []
        self.choices_per_prompt: int | None = None
        """Set for a batch of prompts; None means that all choices have one prompt."""
        self.form: Form | None = None
        """What the texts' form was asked for with; errors name its fields."""
        self.shown_tokens: tuple[int, ...] = ()
        """Special tokens that are text none the less."""

    def first_choices(self) -> list[Choice]:
        """One choice per prompt: the n choices of a prompt share its tokens, which are counted once."""
        return self.choices[:: self.choices_per_prompt or max(1, len(self.choices))]

    @property
    def done(self) -> bool:
        """Whether every choice has finished."""
        return not self._open and not self._ready

    def add(
        self, tokens: list[int], params: SamplingParams, *, priority: int | None, cache_salt: str | None
    ) -> None:
        """One more choice, for `begin` to send to the engine."""
        request = GenerateRequest(
            model=self._model.name,
            tokens=GenerateRequest.pack_tokens(tokens),
            params=params,
            tenant=self._principal.number,
            priority=self._principal.priority_of(priority),
            cache_salt=None if cache_salt is None else cache_salt.encode(),
        )
        text = self._model.tokenizer.stream(
            tokens,
            stop=params.stop,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            keep_offsets=params.logprobs is not None,
            show=self.shown_tokens,
        )
        choice = Choice(len(self.choices), request, text, ChoiceTimer(self._model.metrics))
        self.choices.append(choice)
        self._prepared.append((request, choice))

    def begin(self) -> None:
        """Sends all choices to the engine."""
        prepared, self._prepared = self._prepared, []
        for request, choice in prepared:
            self._open.add(request.request_id)
            self._model.client.submit(request, partial(self._push, choice))

    @property
    def most(self) -> tuple[int, int]:
        """Tokens of all prompts, and of all answers at most."""
        window = self._model.info.max_model_len
        answers = (min(c.params.max_tokens or window, window - c.prompt_tokens) for c in self.choices)
        return sum(choice.prompt_tokens for choice in self.first_choices()), sum(answers)

    @property
    def num_generated(self) -> int:
        """Tokens of all answers so far."""
        return sum(choice.completion_tokens for choice in self.choices)

    async def take(self, *, per_token: bool) -> dict[Choice, list[Piece]]:
        """Waits until the engine has given something and returns all of it, by choice.

        Raises what ended a choice early, once everything before it has been returned.
        """
        while not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        ready, self._ready = self._ready, []
        at = now()
        taken: dict[Choice, list[Piece]] = {}
        for i, (choice, output) in enumerate(ready):
            if choice.finish_reason is not None:
                continue  # it found a stop string; the engine had not heard of it yet
            if taken and output.finish_reason not in (None, "stop", "length"):
                self._ready[:0] = ready[i:]  # what came before the error still goes out
                break
            _raise_early_end(output, self.form)
            pieces = choice.advance(output, self._arrived, at, per_token=per_token)
            earlier = taken.setdefault(choice, pieces)
            if earlier is not pieces:
                earlier.extend(pieces)
            if choice.finish_reason is not None:
                self._finished(choice)
        return taken

    def close(self) -> None:
        """Cancels what still runs; nothing is delivered any more."""
        for request_id in self._open:
            self._model.client.abandon(request_id)
        self._open.clear()

    def _push(self, choice: Choice, output: Output) -> None:
        self._ready.append((choice, output))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _finished(self, choice: Choice) -> None:
        self._open.discard(choice.request_id)
        self._model.client.abandon(choice.request_id)  # does nothing where the engine itself has ended it
        metrics = self._model.metrics
        metrics.finished(choice.finish_reason or "")
        if self.done:
            metrics.e2e_latency.observe(now() - self._arrived)


def _raise_early_end(output: Output, form: Form | None) -> None:
    if output.error is not None:
        error = error_of(output.error)
        raise form.named(error) if form is not None and isinstance(error, RequestError) else error
    if output.finish_reason == "deadline":
        raise ApiError(504, "the request's deadline passed", type="timeout_error", code="deadline_exceeded")
    if output.finish_reason in ("cancelled", "error"):
        raise EngineDeadError("the engine gave the request up")
