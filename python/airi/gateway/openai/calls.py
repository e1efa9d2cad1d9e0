"""What calls to models have in common over HTTP, and chat and completions above that: streamed or whole.

Each endpoint supplies how its request becomes choices and how pieces become JSON; this module drives them, notices
clients that hang up and turns failures into answers or, once a stream has begun, into an error event.
"""

from __future__ import annotations

import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from airi import __version__
from airi.gateway import sse
from airi.gateway.choice import Choice, Piece
from airi.gateway.choosing import RoutedCall
from airi.gateway.content import CallContent
from airi.gateway.errors import ApiError, api_error_from, internal_error, unavailable, without_text
from airi.gateway.explaining import trace_of
from airi.gateway.findings import PromptResults
from airi.gateway.gate import Gate
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord, Receive, Scope, Send, read_body, record_of, respond, watching
from airi.gateway.models import ServedModel
from airi.gateway.openai.schemas_common import PromptTokensDetails, SamplingFields, Usage
from airi.gateway.openai.schemas_pooling import PoolingFields
from airi.gateway.openai.translated import TRANSLATED
from airi.gateway.sampling import check_stream_options
from airi.gateway.tasks import GENERATES, check_task
from airi.gateway.upstreams.context import context_headers
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.gateway.watching import Sight
from airi.policy.decisions import Action

if TYPE_CHECKING:
    from airi.gateway.openai.logprobs import Vocabulary
    from airi.gateway.retrieval.chat import Retrieved
    from airi.gateway.routes import ServedRoute
    from airi.outputs import Task

log = logging.getLogger("airi.gateway")

FINGERPRINT = f"airi-{__version__}"

R = TypeVar("R", bound=SamplingFields)
Q = TypeVar("Q", bound=SamplingFields | PoolingFields)


class Reply:
    """How what one request gives becomes JSON. Made per request, after its texts are tokenised."""

    def __init__(self, id: str, request: SamplingFields | PoolingFields, model: ServedModel) -> None:
        self.id = id
        self.created = int(time.time())
        self.model = model
        self.served_as = request.model
        self.prompt_results: list[PromptResults] = []
        """What content rules found in prompts that the client is told."""
        self.retrieved: Retrieved | None = None
        """What was found for the question and put into the prompt."""


A = TypeVar("A", bound=Reply)


class Answer(Reply, ABC):
    """How one request's choices become JSON, whole or as they grow."""

    def __init__(self, id: str, request: SamplingFields, model: ServedModel) -> None:
        super().__init__(id, request, model)
        self.vocabulary: Vocabulary = model.tokenizer
        """Of the ids in log-probabilities."""

    def head(self) -> bytes:
        """What a stream begins with, before any choice."""
        return b""

    @abstractmethod
    def opening(self, choice: Choice) -> bytes:
        """The events that begin a streamed choice, sent with its first piece."""

    @abstractmethod
    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """The events of these pieces."""

    @abstractmethod
    def closing(self, choice: Choice) -> bytes:
        """The event that ends a streamed choice."""

    @abstractmethod
    def ending(self, usage: Usage) -> bytes:
        """What a stream ends with, after all choices."""

    @abstractmethod
    def failed(self, error: ApiError, request_id: str) -> bytes:
        """What a stream ends with that had begun when the call failed."""

    @abstractmethod
    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects the pieces of an answer that does not stream."""

    @abstractmethod
    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The body of an answer that does not stream."""


class ChunkedAnswer(Answer):
    """One whose stream is chunks of one form, the last of them [DONE]."""

    def __init__(self, prefix: str, chunk: str, request: SamplingFields, model: ServedModel) -> None:
        """`chunk` is the `object` of the events of a stream."""
        super().__init__(f"{prefix}-{secrets.token_hex(12)}", request, model)
        self._include_usage = check_stream_options(request)
        self.frame = sse.ChunkFrame(
            id=self.id,
            object=chunk,
            created=self.created,
            model=self.served_as,
            fingerprint=FINGERPRINT,
        )

    def head(self) -> bytes:
        """What content rules found in prompts, and the documents that were put into them, if any."""
        found = self.frame.prompts(self.prompt_results) if self.prompt_results else b""
        return found if self.retrieved is None else found + self.frame.retrieval(self.retrieved.told(None))

    def ending(self, usage: Usage) -> bytes:
        """The token counts, where they are asked for, and [DONE]."""
        return self.frame.usage(usage) + sse.DONE if self._include_usage else sse.DONE

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The error's body as an event, and [DONE]."""
        return b"data: " + error.body() + sse.END + sse.DONE


class Call(ABC, Generic[Q, A]):
    """An ASGI endpoint that calls a model. Stateless between requests."""

    action: Action
    tasks: frozenset[Task]
    """What a model must do to be called here."""

    def __init__(self, gate: Gate, *, body_limit: int) -> None:
        self._gate = gate
        self._body_limit = body_limit

    @abstractmethod
    async def read(self, scope: Scope, body: bytes) -> Q:
        """The request in a body; raises a 400 that says where it is wrong."""

    async def prepare(self, request: Q, model: ServedModel, record: CallRecord) -> Retrieved | None:
        """What is done for a request before its prompt is made, and may change it."""
        return None

    @abstractmethod
    async def start(self, request: Q, model: ServedModel, generation: Generation) -> A:
        """Checks the request, tokenises its prompt and adds its choices; raises for what cannot be served."""

    @abstractmethod
    def context(self, request: Q, record: CallRecord, model: ServedModel) -> dict[str, Any]:
        """What policies may ask of the call; one that leaves its length open may take the model's window."""

    @abstractmethod
    def generation(
        self, model: ServedModel, record: CallRecord, content: CallContent | None, sight: Sight | None
    ) -> Generation:
        """What runs the request's choices."""

    @abstractmethod
    async def send(
        self, request: Q, answer: A, generation: Generation, send: Send, record: CallRecord
    ) -> None:
        """Takes all that comes of what has begun, and sends it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        record = record_of(scope)
        trace = record.trace = self._gate.traces.begin(record, getattr(scope.get("route"), "path", ""))
        body = await read_body(scope, receive, self._body_limit)
        request = await self.read(scope, body)
        trace.asked, trace.stream = request.model, bool(request.stream)
        size = len(body)
        del body
        if not isinstance(request, TRANSLATED):
            await self._serve(request, size, record, receive, send)
            return
        with request.places.naming():
            await self._serve(request, size, record, receive, send)

    async def _serve(self, request: Q, size: int, record: CallRecord, receive: Receive, send: Send) -> None:
        route = self._gate.route(request.model)
        if route is None:
            await self._call(request, request.model, None, size, record, receive, send)
            return
        from airi.gateway.routes import TooCostlyError, may_fall_back

        chooser = self._gate.chooser
        call = RoutedCall(request, record, self.action, size, partial(self.context, request, record))
        chosen = await chooser.choose(route, call, receive)
        trace_of(record).route = route.name, chosen
        failure: Exception | None = None
        for name in chosen.models:
            record.headers, record.release, record.draw = (), (), chosen.draw and chosen.draw.copy()
            try:
                # Rules for prompts put others in their place, each model's its own.
                keeping = chooser.keeping(send, route, record, chosen, name)
                spared = (TooCostlyError,) if name != chosen.models[-1] else ()
                await self._call(copy(request), name, route, size, record, receive, keeping, spared)
                return
            except Exception as error:
                known = may_fall_back(error) or (failure is not None and api_error_from(error) is not None)
                if record.response_started or not known:
                    raise
                failure = failure or error
        if failure is not None:
            raise failure

    async def _call(
        self,
        request: Q,
        name: str,
        route: ServedRoute | None,
        size: int,
        record: CallRecord,
        receive: Receive,
        send: Send,
        spared: tuple[type[Exception], ...] = (),
    ) -> None:
        with trace_of(record).ask(name):
            model = self._gate.admit(record, self.action, name, partial(self.context, request, record))
            if route is not None:
                model.metrics.routed(route.name)
            async with self._gate.counted(record, model, priority=request.priority, spared=spared):
                await self._answer(request, model, route, record, size, receive, send)

    async def _answer(
        self,
        request: Q,
        model: ServedModel,
        route: ServedRoute | None,
        record: CallRecord,
        size: int,
        receive: Receive,
        send: Send,
    ) -> None:
        """`size`: bytes of the body."""
        check_task(model, self.tasks)
        check_stream_options(request)
        content = self._gate.content_of(record, model, size)
        if content is not None and isinstance(request, TRANSLATED):
            content.place_of = request.places.of
        sight = self._gate.sight_of(record, model)
        generation = self.generation(model, record, content, sight)
        trace = trace_of(record)
        trace.runs(generation)
        try:
            async with generation, watching(receive):
                retrieved = await self.prepare(request, model, record)
                answer = await self.start(request, model, generation)
                answer.retrieved = retrieved
                trace.answer_id = answer.id
                if route is not None:
                    route.check_cost(model.name, generation.most)
                record.headers = await self._gate.reserve(record, generation, priority=request.priority)
                if content is not None:
                    await content.judge_prompts()
                    answer.prompt_results = content.prompt_results
                generation.begin()
                await self.send(request, answer, generation, send, record)
        except Exception as error:
            if not record.response_started:
                record.headers += generation.headers
            if sight is not None:
                sight.error = error
            raise
        finally:
            if content is not None:
                content.close()
            _account(model, generation, record)
            if sight is not None:
                sight.ended()


class ModelCall(Call[R, Answer]):
    """One that generates."""

    tasks = GENERATES

    def generation(
        self, model: ServedModel, record: CallRecord, content: CallContent | None, sight: Sight | None
    ) -> Generation:
        """As `Call.generation`."""
        forbidden = self._gate.forbidden_to(record, model)
        if model.upstream is None:
            return Generation(
                model,
                record.principal,
                arrived=record.started,
                content=content,
                forbidden=forbidden,
                sight=sight,
            )
        if forbidden is not None:  # configs with such a rule are refused
            raise unavailable(
                f"{model.name} is run by another server, which cannot be kept from forbidden texts"
            )
        return UpstreamGeneration(
            model,
            model.upstream,
            record.principal,
            arrived=record.started,
            content=content,
            headers=context_headers(record, model),
        )

    async def send(
        self, request: R, answer: Answer, generation: Generation, send: Send, record: CallRecord
    ) -> None:
        """As `Call.send`."""
        if request.stream:
            await self._stream(answer, generation, send, record)
        else:
            await self._whole(answer, generation, send, record)

    async def _whole(self, answer: Answer, generation: Generation, send: Send, record: CallRecord) -> None:
        while not generation.done:
            for choice, pieces in (await generation.take(per_token=False)).items():
                answer.keep(choice, pieces)
        body = answer.whole(generation.choices, _usage(generation))
        # Known only now: a call may have waited for a replica, or gone to another one.
        record.headers += generation.headers
        await respond(send, 200, body)

    async def _stream(self, answer: Answer, generation: Generation, send: Send, record: CallRecord) -> None:
        # Headers wait for the first output: until then a failure still has a status of its own.
        opened: set[int] = set()
        head = answer.head()
        try:
            while not generation.done:
                events: list[bytes] = []
                for choice, pieces in (await generation.take(per_token=True)).items():
                    if choice.index not in opened:
                        opened.add(choice.index)
                        events.append(answer.opening(choice))
                    if pieces:
                        events.append(answer.pieces(choice, pieces))
                    if choice.finish_reason is not None:
                        events.append(answer.closing(choice))
                if generation.done:
                    events.append(answer.ending(_usage(generation)))
                data = b"".join(events)
                if data:
                    if not record.response_started:
                        record.headers += generation.headers
                    await _write(send, record, head + data, more=not generation.done)
                    head = b""
        except Exception as error:
            if not record.response_started:
                raise
            if generation.sight is not None:
                generation.sight.error = error
            await self._end_with_error(answer, error, send, record)

    async def _end_with_error(self, answer: Answer, error: Exception, send: Send, record: CallRecord) -> None:
        known = api_error_from(error)
        if known is None:
            log.error(
                "request %s failed while streaming: %s",
                record.request_id,
                type(error).__name__,
                exc_info=without_text(error),
            )
            known = internal_error(record.request_id)
        trace_of(record).fail(known)
        await send({"type": "http.response.body", "body": answer.failed(known, record.request_id)})


def reason_of(choice: Choice) -> Literal["stop", "length", "content_filter"]:
    """Why a choice ended, as the API has it."""
    match choice.finish_reason:
        case "length" | "content_filter" as reason:
            return reason
        case _:
            return "stop"


async def _write(send: Send, record: CallRecord, data: bytes, *, more: bool) -> None:
    if not record.response_started:
        await send({"type": "http.response.start", "status": 200, "headers": list(sse.HEADERS)})
    await send({"type": "http.response.body", "body": data, "more_body": more})


def _usage(generation: Generation) -> Usage:
    """Counts over all choices; the `n` choices of one prompt count its tokens once."""
    firsts = generation.first_choices()
    prompt = sum(choice.prompt_tokens for choice in firsts)
    completion = sum(choice.completion_tokens for choice in generation.choices)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(choice.cached_tokens for choice in firsts)
        ),
    )


def _account(model: ServedModel, generation: Generation, record: CallRecord) -> None:
    # A prompt counts once something of its answer has come: not when the queue was full.
    record.prompt_tokens = generation.num_read
    record.completion_tokens = generation.num_generated
    record.device_us = generation.device_us
    model.metrics.prompt_tokens.inc(record.prompt_tokens)
    model.metrics.generation_tokens.inc(record.completion_tokens)
