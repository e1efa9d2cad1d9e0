"""Running the choices of one HTTP request at an upstream: its chunks come as an engine's tokens do.

Each piece of text that a chunk brings is a token of a vocabulary that grows as the answer does. All that stands above
an engine therefore stands above an upstream too: content rules, calls of tools, forms of answers, what is counted.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from airi.errors import AiriError
from airi.gateway.choice import Choice
from airi.gateway.errors import is_unavailable
from airi.gateway.generation import Generation
from airi.gateway.metrics import ChoiceTimer, now
from airi.gateway.models import ServedModel
from airi.gateway.upstreams.calls import CallWriter, MisplacedCallError
from airi.outputs import FinishReason
from airi.policy import Principal
from airi.sampling_params import SamplingParams
from airi.text import TextStream
from airi.text.tools import ToolFormat
from airi.transport import GenerateRequest, Output, TokenLogprobs
from airi.upstreams.chunks import Chunk, ChunkChoice, TokenLogprob, Usage
from airi.upstreams.errors import UpstreamError, UpstreamRefusal

if TYPE_CHECKING:
    from airi.gateway.content import CallContent
    from airi.upstreams.breaker import CircuitState
    from airi.upstreams.client import UpstreamClient
    from airi.upstreams.retries import Attempt

__all__ = ["UpstreamGeneration"]

log = logging.getLogger("airi.gateway")

_REASONS: Final[dict[str, FinishReason]] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
"""All others are an end that the model came to, but for these."""
_NO_END: Final = frozenset({"error", "abort", "cancelled", "insufficient_system_resource"})


class _Texts:
    """Pieces of text as tokens: what a `TextStream` asks of a detokenizer."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def add(self, text: str) -> int:
        """One more; its number."""
        self.pieces.append(text)
        return len(self.pieces) - 1

    def push(self, token_ids: Sequence[int]) -> str:
        """As `Detokenizer.push`."""
        return "".join([self.pieces[token] for token in token_ids])

    def push_offsets(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """As `Detokenizer.push_offsets`."""
        text, offsets = "", []
        for token in token_ids:
            offsets.append(len(text))
            text += self.pieces[token]
        return text, offsets

    def finish(self) -> str:
        """Nothing is left."""
        return ""


class Vocabulary:
    """Numbers for the tokens that log-probabilities speak of, by their bytes."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._tokens: list[bytes] = []

    def token_bytes(self, token_id: int) -> bytes:
        """As `Tokenizer.token_bytes`."""
        return self._tokens[token_id]

    def entry(self, told: TokenLogprob, most: int) -> TokenLogprobs:
        """What is told of a token, with so many alternatives at most."""
        tops = told.top_logprobs[:most]
        return TokenLogprobs(
            token=self._id(told.data),
            logprob=told.logprob,
            rank=1 + sum(top.logprob > told.logprob for top in tops),
            top_tokens=[self._id(top.data) for top in tops],
            top_logprobs=[top.logprob for top in tops],
        )

    def _id(self, data: bytes) -> int:
        if data not in self._ids:
            self._ids[data] = len(self._tokens)
            self._tokens.append(data)
        return self._ids[data]


class _Answer:
    """One choice on its way from the upstream."""

    def __init__(self, choice: Choice, texts: _Texts, stream: TextStream, form: ToolFormat | None) -> None:
        self.choice, self.texts, self.stream = choice, texts, stream
        self.writer = CallWriter(form)
        self.reason: FinishReason | None = None
        self.stop_string: str | None = None

    def written(self, added: ChunkChoice) -> str:
        """What a chunk adds. Raises MisplacedCallError."""
        return self.writer.text(added.added) + "".join([self.writer.call(call) for call in added.calls])


class UpstreamGeneration(Generation):
    """All choices of one HTTP request at an upstream: one call there. Leaving its block cancels that, and settles.

    *Thread safety*: none; event loop only.
    *Invariant*: a choice that has neither ended nor been cancelled is in `_open`; without one no connection is open.
    """

    def __init__(
        self,
        model: ServedModel,
        upstream: UpstreamClient,
        principal: Principal,
        *,
        arrived: float,
        content: CallContent | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`headers` go along with the call."""
        super().__init__(model, principal, arrived=arrived, content=content)
        self._upstream = upstream
        self._path, self._body, self._most_prompt = "", b"", 0
        self._headers = headers
        self.vocabulary = Vocabulary()
        """Of log-probabilities."""
        self._answers: list[_Answer] = []
        self._usage: Usage | None = None
        self._failure: UpstreamError | UpstreamRefusal | None = None
        self._task: asyncio.Task[None] | None = None
        self.attempts: list[Attempt] = []
        """How often the upstream was asked, and what became of it."""
        self.circuit: CircuitState | None = None
        """Of the upstream's breaker, before the call."""

    def ask(
        self,
        path: str,
        body: bytes,
        params: Iterable[SamplingParams],
        *,
        prompt_tokens: int,
        form: ToolFormat | None = None,
    ) -> None:
        """What `begin` is to send, and a choice for each of the parameters. `prompt_tokens`: of all prompts at most."""
        self._path, self._body, self._most_prompt = path, body, prompt_tokens
        for each in params:
            texts = _Texts()
            stream = TextStream(texts, keep_offsets=each.logprobs is not None)
            request = GenerateRequest(model=self.model.name, tokens=b"", params=each)
            make = Choice if self.content is None else self.content.choice
            choice = make(len(self.choices), request, stream, ChoiceTimer(self.model.metrics))
            self._answers.append(_Answer(choice, texts, stream, form))
            self.choices.append(choice)
            self._unfinished += 1

    def begin(self) -> None:
        """Calls the upstream."""
        self.sent_at, self.circuit = now(), self._upstream.breaker.state
        self._open.update(choice.request_id for choice in self.choices)
        self._upstream.calls.add(self.end)
        self._task = asyncio.create_task(self._run())

    @property
    def most(self) -> tuple[int, int]:
        """As `Generation.most`; what the upstream's window takes where no length is asked for."""
        window = self.model.info.max_model_len
        return self._most_prompt, sum(min(c.params.max_tokens or window, window) for c in self.choices)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Cancels what still runs, which closes its connection, and settles."""
        self.close()
        self._upstream.calls.discard(self.end)
        try:
            if self._task is not None:
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            if self._task is not None and self.num_generated:
                self.num_generated = self._counted[1]
            await super().__aexit__(kind, error, trace)

    def _cancel(self, request_id: int) -> None:
        self._open.discard(request_id)
        if not self._open and self._task is not None:
            self._task.cancel()

    def _used(self, error: BaseException | None) -> tuple[int, int, int]:
        """As `Generation._used`: by what the upstream says it was, or else by the most that it can have been."""
        if isinstance(error, AiriError) and not self.num_generated:
            return (0 if is_unavailable(error) else 1), 0, 0
        held, used = self.most, self._counted
        if used[0] > held[0] or used[1] > held[1]:
            # No more can be charged than is held: of what a limit has left, others have been told already.
            log.warning(
                "the upstream of %s counts %d and %d tokens of prompts and answers; at most %d and %d are held",
                self.model.name,
                *used,
                *held,
            )
        return 1, min(used[0], held[0]), min(used[1], held[1])

    @property
    def _counted(self) -> tuple[int, int]:
        """Tokens of prompts and answers. An upstream that counts more than its window takes is not believed."""
        usage, texts = self._usage, ["".join(answer.texts.pieces) for answer in self._answers]
        window = self.model.info.max_model_len
        if usage is not None and (usage.completion_tokens or not any(texts)):
            prompts = len(self.first_choices())
            completion = min(usage.completion_tokens, window * len(texts))
            return min(usage.prompt_tokens, window * prompts), completion
        encode = self.model.tokenizer.encode
        return self._most_prompt, sum(len(encode(text, add_special_tokens=False)) for text in texts)

    def _finished(self, choice: Choice) -> None:
        super()._finished(choice)
        answer = self._answers[choice.index]
        if choice.finish_reason == "stop":
            answer.stream.stopped = answer.stop_string
        if not self.done:
            return
        prompt, self.num_generated = self._counted
        first, *others = self.choices
        first.prompt_tokens = prompt
        first.cached_tokens = 0 if self._usage is None else self._usage.cached_tokens
        # It counts all choices together.
        first.completion_tokens = max(0, self.num_generated - sum(c.completion_tokens for c in others))

    def _check_end(self, output: Output) -> None:
        if output.finish_reason == "error" and self._failure is not None:
            raise self._failure
        super()._check_end(output)

    # -- what comes ----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._upstream.ask(
                self._path,
                self._body,
                headers=self._headers,
                attempts=self.attempts,
                take=self._take_chunk,
                is_whole=lambda: self._have_all_ended,
            )
        except (UpstreamError, UpstreamRefusal) as error:
            self._failure = error
        except Exception as error:  # whatever it is, nobody waits for ever
            log.exception("the answer of the upstream of %s cannot be read", self.model.name)
            self._failure = self._upstream.broken(f"cannot be read: {type(error).__name__}")
        if self._have_all_ended:
            self._failure = None  # all is there; what went wrong behind it is nobody's concern
        for answer in self._answers:
            if answer.choice.request_id in self._open:
                self._end(answer, answer.reason if self._failure is None else "error")

    @property
    def _have_all_ended(self) -> bool:
        return all(answer.reason is not None for answer in self._answers)

    def _take_chunk(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self._usage = chunk.usage
        for added in chunk.choices or ():
            if added.index >= len(self._answers):
                raise self._upstream.broken("answers with a choice that nobody asked for")
            self._take_choice(self._answers[added.index], added)

    def _take_choice(self, answer: _Answer, added: ChunkChoice) -> None:
        if answer.reason is not None:
            return  # such as an empty chunk behind the end
        try:
            text = answer.written(added)
        except MisplacedCallError:
            raise self._upstream.broken("answers with a call of a tool that cannot be one") from None
        if added.finish_reason in _NO_END:
            raise self._upstream.broken("gave the request up")
        if added.finish_reason:
            answer.reason = _REASONS.get(added.finish_reason, "stop")
            text += answer.writer.close() if answer.reason == "stop" else ""
            answer.stop_string = added.stop_reason if isinstance(added.stop_reason, str) else None
        most = answer.choice.params.logprobs
        if most is not None:
            self._push_tokens(answer, text, added, most)
        elif text:
            token = answer.texts.add(text)
            self._push(answer.choice, Output(answer.choice.request_id, [token]))
        # The last one ends with the stream, as what was used is told behind it.
        if answer.reason is not None and not self._have_all_ended:
            self._end(answer, answer.reason)

    def _push_tokens(self, answer: _Answer, text: str, added: ChunkChoice, most: int) -> None:
        """Text whose tokens have log-probabilities, with so many alternatives each."""
        try:
            told = added.tokens
        except ValueError:
            raise self._upstream.broken("answers with log-probabilities that are none") from None
        if not told:
            if text:
                raise self._upstream.broken("gives no log-probabilities, which are asked for")
            return
        tokens = [answer.texts.add(piece) for piece in _pieces(text, told)]
        entries = [self.vocabulary.entry(each, most) for each in told]
        self._push(answer.choice, Output(answer.choice.request_id, tokens, logprobs=entries))

    def _end(self, answer: _Answer, reason: FinishReason | None) -> None:
        self._push(answer.choice, Output(answer.choice.request_id, [], reason))


def _pieces(text: str, tokens: Sequence[TokenLogprob]) -> list[str]:
    """A text cut by its tokens, a character with its last byte; whole with the first one where they spell another."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(token.data) for token in tokens]
    return pieces if "".join(pieces) == text else [text] + [""] * (len(tokens) - 1)
