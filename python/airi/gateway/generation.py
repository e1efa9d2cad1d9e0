"""Running the choices of one HTTP request: tokens come from the engine, pieces of text go to the encoder.

The engine's outputs are dropped into a list by a callback; the handler takes all that is there at once, so that the
tokens of several steps leave in one write when the client or this process is slower than the engine.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Self

from airi.errors import AiriError, EngineDeadError, RequestError
from airi.gateway.certificates import Proof
from airi.gateway.choice import Choice, Piece
from airi.gateway.errors import ApiError, is_unavailable
from airi.gateway.forms import Form
from airi.gateway.http import Headers
from airi.gateway.metrics import ChoiceTimer, now
from airi.gateway.models import ServedModel
from airi.policy import Principal
from airi.sampling_params import SamplingParams
from airi.transport import GenerateRequest, Output, error_of
from airi.transport.messages import LONGEST_SILENCE_S

if TYPE_CHECKING:
    from airi.gateway.content import CallContent
    from airi.gateway.limits import Held
    from airi.gateway.watching import Sight
    from airi.policy.forbidden import ForbiddenPolicy

log = logging.getLogger("airi.gateway")

_REGULAR = (None, "stop", "length", "content_filter")
"""How an output ends its choice, or does not, unless something went wrong."""


class Generation:
    """All choices of one HTTP request in the engine. Leaving its block cancels what still runs, and settles what ran.

    *Thread safety*: none; event loop only.
    *Invariant*: a request that the engine has not ended is in `_open`; also of a choice that found a stop string.
    """

    def __init__(
        self,
        model: ServedModel,
        principal: Principal,
        *,
        arrived: float,
        content: CallContent | None = None,
        forbidden: ForbiddenPolicy | None = None,
        sight: Sight | None = None,
    ) -> None:
        """`forbidden`: what its texts may not hold. `sight`: of a request of a line in a rollout."""
        self.content = content
        """The rules that its texts pass; None where there are none."""
        self._forbidden = forbidden
        self.sight = sight
        self.model = model
        self.principal = principal
        self._arrived = arrived
        self._ready: list[tuple[Choice, Output]] = []
        self._growing: dict[Choice, Output] = {}  # of those, what a choice's later outputs are merged into
        self._waiter: asyncio.Future[None] | None = None
        self._open: set[int] = set()
        self._unfinished = 0
        self._held: Held | None = None
        self._error: Exception | None = None
        self._prepared: list[tuple[GenerateRequest, Choice]] = []
        self.choices: list[Choice] = []
        self.sent_at: float | None = None
        """When it was sent; None before."""
        self.ended_at: float | None = None
        """When its block was left; None before."""
        self.choices_per_prompt: int | None = None
        """Set for a batch of prompts; None means that all choices have one prompt."""
        self.form: Form | None = None
        """What the texts' form was asked for with; errors name its fields."""
        self.shown_tokens: tuple[int, ...] = ()
        """Special tokens that are text none the less."""
        self.device_us = 0
        """Device time of all choices, as far as the engine has told; all of it once the block is left."""
        self.num_generated = 0
        """Tokens of all choices, as `device_us`: also those that were not taken, and those behind a stop string."""

    def first_choices(self) -> list[Choice]:
        """One choice per prompt: the n choices of a prompt share its tokens, which are counted once."""
        return self.choices[:: self.choices_per_prompt or max(1, len(self.choices))]

    @property
    def num_read(self) -> int:
        """Tokens of prompts of which something has come."""
        return sum(choice.prompt_tokens for choice in self.first_choices() if choice.completion_tokens)

    @property
    def done(self) -> bool:
        """Whether every choice has finished."""
        return not self._unfinished

    def add(
        self, tokens: list[int], params: SamplingParams, *, priority: int | None, cache_salt: str | None
    ) -> None:
        """One more choice, for `begin` to send to the engine."""
        forbidden = self._forbidden
        if self.content is not None:
            params = self.content.allowed(params)
        request = GenerateRequest(
            model=self.model.engine_name,
            tokens=GenerateRequest.pack_tokens(tokens),
            params=params,
            tenant=self.principal.number,
            priority=self.principal.priority_of(priority),
            cache_salt=None if cache_salt is None else cache_salt.encode(),
            forbidden=None if forbidden is None else forbidden.digest,
            shown_tokens=() if forbidden is None else self.shown_tokens,
        )
        text = self.model.tokenizer.stream(
            tokens,
            stop=params.stop,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            keep_offsets=params.logprobs is not None,
            show=self.shown_tokens,
            may_end=None if forbidden is None else forbidden.may_end,
        )
        make = Choice if self.content is None else self.content.choice
        sight = self.sight
        timer = ChoiceTimer(self.model.metrics, None if sight is None else sight.seen)
        choice = make(len(self.choices), request, text, timer)
        if sight is not None:
            sight.asked(choice, request)
        if forbidden is not None:
            choice.prove_with(Proof(forbidden, text, self.model.tokenizer_sha256))
        self.choices.append(choice)
        self._unfinished += 1
        self._prepared.append((request, choice))

    def charge_to(self, held: Held) -> None:
        """Tells what holds the call's limits of the device time that is used. Before `begin`."""
        self._held = held

    def begin(self) -> None:
        """Sends all choices to the engine."""
        self.sent_at = now()
        prepared, self._prepared = self._prepared, []
        for request, choice in prepared:
            request.metered = self._held is not None and self._held.is_metered
            self._open.add(request.request_id)
            self.model.client.submit(request, partial(self._push, choice))

    @property
    def headers(self) -> Headers:
        """What a response says of where it comes from. After `begin`."""
        replica = self.model.client.replica_of(self.choices[0].request_id) if self.choices else None
        return () if replica is None else ((b"x-airi-replica", replica.encode()),)

    @property
    def most(self) -> tuple[int, int]:
        """Tokens of all prompts, and of all answers at most."""
        window = self.model.info.max_model_len
        answers = (min(c.params.max_tokens or window, window - c.prompt_tokens) for c in self.choices)
        return sum(choice.prompt_tokens for choice in self.first_choices()), sum(answers)

    async def take(self, *, per_token: bool) -> dict[Choice, list[Piece]]:
        """Waits until the engine has given something and returns all of it, by choice.

        Raises what ended a choice early, once everything before it has been returned; what ended the call, at once.
        """
        while self._error is None and not self._ready:
            await self._wait()
        if self._error is not None:
            raise self._error
        ready, self._ready = self._ready, []
        self._growing.clear()
        at = now()
        taken: dict[Choice, list[Piece]] = {}
        ended: list[Choice] = []
        for i, (choice, output) in enumerate(ready):
            if choice.finish_reason is not None:
                continue  # it found a stop string; the engine had not heard of it yet
            if taken and output.finish_reason not in _REGULAR:
                self._ready[:0] = ready[i:]  # what came before the error still goes out
                break
            self._check_end(output)
            taken[choice] = choice.advance(output, self._arrived, at, per_token=per_token)
            if choice.finish_reason is not None:
                ended.append(choice)
                if choice.request_id in self._open:
                    self._cancel(choice.request_id)
        if self.content is not None and self.content.output.judges:
            taken = await self.content.judged(taken)
        for choice in ended:
            self._finished(choice)
        return taken

    def close(self) -> None:
        """Cancels what still runs."""
        for request_id in list(self._open):
            self._cancel(request_id)

    def _cancel(self, request_id: int) -> None:
        self.model.client.cancel(request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Cancels what still runs, and settles once the engine has ended it, a step or two later.

        What an engine that lives and says nothing tells of device time later is still charged.
        """
        self.close()
        try:
            if self._open:
                await self._ended()
        finally:
            self.ended_at = now()
            if self._held is not None:
                await self._held.settle(*self._used(error))

    async def _ended(self) -> None:
        try:
            async with asyncio.timeout(LONGEST_SILENCE_S):
                while self._open:
                    await self._wait()
        except TimeoutError:
            log.warning(
                "model %s: the engine has not ended a cancelled call in %g s; what it held of limits is given back",
                self.model.name,
                LONGEST_SILENCE_S,
            )

    def _used(self, error: BaseException | None) -> tuple[int, int, int]:
        """What a call is charged for: requests, tokens of prompts and of answers.

        What fails before its first token is charged for its prompts only where the engine has read of them, and for
        nothing where it could not be served.
        """
        if isinstance(error, AiriError) and not self.num_generated:
            if is_unavailable(error):
                return 0, 0, 0
            if not self.device_us:
                return 1, 0, 0
        return 1, self.most[0], self.num_generated

    def end(self, error: Exception) -> bool:
        """Cancels what still runs and has the call end with this error; False where it has ended already."""
        if self._error is not None or not self._open:
            return False
        self.close()
        self._error = error
        self._wake()
        return True

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _push(self, choice: Choice, output: Output) -> None:
        self.num_generated += len(output.tokens)
        if output.finish_reason is not None:
            self._open.discard(choice.request_id)
        if output.device_us:
            self.device_us += output.device_us
            self.model.metrics.device_seconds.inc(output.device_us / 1e6)
        if self._held is not None and (output.device_us or not self._open):
            self._held.use_device(output.device_us, runs=bool(self._open))
        earlier = self._growing.get(choice)
        if earlier is not None and output.finish_reason in _REGULAR:
            earlier.merge(output)
        elif output.tokens or output.finish_reason is not None:
            self._ready.append((choice, output))
            self._growing[choice] = output
        self._wake()

    def _finished(self, choice: Choice) -> None:
        self._unfinished -= 1
        metrics = self.model.metrics
        metrics.finished(choice.finish_reason or "")
        if self.sight is not None:
            self.sight.answered(choice)
        if self.done:
            metrics.e2e_latency.observe(now() - self._arrived)

    def _check_end(self, output: Output) -> None:
        """Raises for an output that ends its choice early."""
        _raise_early_end(output, self.form)


def _raise_early_end(output: Output, form: Form | None) -> None:
    if output.error is not None:
        error = error_of(output.error)
        raise form.named(error) if form is not None and isinstance(error, RequestError) else error
    if output.finish_reason == "deadline":
        raise ApiError(504, "the request's deadline passed", type="timeout_error", code="deadline_exceeded")
    if output.finish_reason in ("cancelled", "error"):
        raise EngineDeadError("the engine gave the request up")
