"""Score shadow: a candidate reads what stable has answered, and says how likely it finds that. Nobody gets its answers.

Once an answer has ended, prompt and answer are read once more, by prefill, by the candidate and by stable too. Both
figures are made in the same way then, whatever temperature, penalties and masks the answer was made with; a candidate
of the same weights differs by exactly nothing on CPUs, where sums do not depend on what runs beside. Of prompts whose
log-probabilities are asked for engines take nothing from their prefix caches, so that what happens to be cached decides
nothing either.

The candidate makes the prompt as it would for a request of its own: by its own chat template, with its own tokenizer.
The answer is what stable's model made, also where content rules kept it from the client: rules judge texts, here models
are judged, and no text leaves the engine. Of a request with several answers the first one is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from airi.errors import (
    AiriError,
    EngineDeadError,
    ExecutionError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
)
from airi.gateway.comparing import Reading, Score, Spelling, by_text, by_token
from airi.gateway.errors import ApiError
from airi.gateway.models import ServedModel
from airi.gateway.prompts import in_thread_if_long
from airi.lifecycle.observed import NEVER, Seen
from airi.policy import Principal
from airi.sampling_params import MAX_PRIORITY, SamplingParams
from airi.transport import GenerateRequest

__all__ = ["Answered", "PromptFor", "Scorer", "Unscored", "score"]

log = logging.getLogger("airi.gateway")

MOST_AT_ONCE: Final = 8
"""Answers that are read at the same time; those that end meanwhile are not."""
_TIMEOUT_S: Final = 60.0
_PARAMS: Final = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
_LONGEST_CHARACTER: Final = 4
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"

PromptFor = Callable[[ServedModel], Awaitable[Sequence[int]]]
"""The prompt of a request as another model would be given it. Raises as for a request of that model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer of stable's that has ended, and what it was asked."""

    principal: Principal
    prompt: Sequence[int]
    """As stable read it."""
    prompt_for: PromptFor
    tokens: Sequence[int]
    """Of the answer, as stable made it, with the one that ended it."""
    cache_salt: bytes | None = None


class Unscored(Exception):
    """Why an answer cannot be scored."""


class Scorer:
    """Scores answers beside all else: bounded, behind every other request, without anybody waiting for it.

    *Thread safety*: none; one event loop.
    *Invariant*: a prompt and an answer are held only while they are read.
    """

    def __init__(self, *, most: int = MOST_AT_ONCE, timeout_s: float = _TIMEOUT_S) -> None:
        """`timeout_s`: after which an answer is left out; an engine with better things to do need not read it."""
        self._most, self._timeout_s = most, timeout_s
        self._running: set[asyncio.Task[None]] = set()

    @property
    def num_running(self) -> int:
        """Answers that are being read."""
        return len(self._running)

    @property
    def is_full(self) -> bool:
        """Whether another answer would be dropped."""
        return len(self._running) >= self._most

    def offer(
        self,
        answered: Answered,
        stable: ServedModel,
        candidate: ServedModel,
        seen: Seen,
        ended: Callable[[str], object] = str,
    ) -> None:
        """As `run`: has an answer scored for what is seen of the candidate."""

        async def read() -> None:
            count(await score(answered, stable, candidate), seen)

        self.run(read, stable, seen, ended)

    def run(
        self,
        read: Callable[[], Awaitable[None]],
        stable: ServedModel,
        seen: Seen,
        ended: Callable[[str], object] = str,
    ) -> None:
        """Has the candidate read what stable has answered; where too much is being read it only counts.

        `read` adds to `seen`, and raises as `score`. `ended` is told what came of it: scored, unscored or dropped.
        """
        if self.is_full:
            seen.dropped += 1
            stable.metrics.shadowed("dropped")
            ended("dropped")
            return
        task = asyncio.create_task(self._run(read, stable, seen, ended))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Reads nothing any more."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(
        self,
        read: Callable[[], Awaitable[None]],
        stable: ServedModel,
        seen: Seen,
        ended: Callable[[str], object],
    ) -> None:
        outcome = "dropped"
        try:
            async with asyncio.timeout(self._timeout_s):
                await read()
            outcome = "scored"
        except Unscored as error:
            seen.unscored += 1
            outcome = "unscored"
            log.info("an answer of %s cannot be scored: %s", stable.engine_name, error)
        except (AiriError, TimeoutError) as error:
            seen.dropped += 1
            log.info("an answer of %s was not scored: %s", stable.engine_name, type(error).__name__)
        except Exception as error:
            seen.dropped += 1
            log.error("scoring an answer of %s failed: %s", stable.engine_name, type(error).__name__)
        stable.metrics.shadowed(outcome)
        ended(outcome)


def count(found: Score, seen: Seen) -> None:
    """Adds a score to what is seen of a candidate."""
    seen.nll_delta.add(found.nll_delta, found.tokens)
    if found.compared:
        seen.agreement.add(found.agreed, found.compared)
        diverges = found.first_divergence < found.tokens
        seen.first_divergence.add(found.first_divergence if diverges else NEVER)


async def score(answered: Answered, stable: ServedModel, candidate: ServedModel) -> Score:
    """Has both models read an answer. Raises Unscored where that cannot be, AiriError where no engine can do it now."""
    try:
        prompt = await answered.prompt_for(candidate)
    except (ApiError, RequestError) as error:
        raise Unscored(f"{candidate.engine_name} takes no such prompt: {type(error).__name__}") from None
    tokens = answered.tokens[: _room(stable, answered.prompt)]
    if _same_tokens(stable, candidate):
        tokens = tokens[: _room(candidate, prompt)]
        pair = await asyncio.gather(
            _read(stable, answered, answered.prompt, tokens), _read(candidate, answered, prompt, tokens)
        )
        return by_token(*pair)
    # Texts end by tokens that no other model has; what is said of them cannot be compared.
    mine, text = await in_thread_if_long(lambda: _text(stable, tokens), len(tokens) * _LONGEST_CHARACTER)
    theirs = await in_thread_if_long(lambda: _tokens(candidate, text), len(text))
    if len(theirs) > _room(candidate, prompt):
        raise Unscored(f"{candidate.engine_name} has no room for it")
    pair = await asyncio.gather(
        _read(stable, answered, answered.prompt, mine), _read(candidate, answered, prompt, theirs)
    )
    return by_text(*pair, _spellings(stable, mine, candidate, theirs, text))


def _room(model: ServedModel, prompt: Sequence[int]) -> int:
    """Tokens of an answer that a model can read behind a prompt: prefill gives one more. Raises Unscored for none."""
    room = model.info.max_model_len - 1 - len(prompt)
    if room < 1 or not prompt:
        raise Unscored(f"{model.engine_name} has no room for it")
    return room


def _same_tokens(stable: ServedModel, candidate: ServedModel) -> bool:
    one, other = stable.tokenizer, candidate.tokenizer
    return (
        bool(stable.tokenizer_sha256)
        and stable.tokenizer_sha256 == candidate.tokenizer_sha256
        and one.vocab_size == other.vocab_size
    )


def _text(model: ServedModel, tokens: Sequence[int]) -> tuple[Sequence[int], str]:
    """The tokens that are text, and that text; a character that the end cuts off is left out. Raises Unscored."""
    ends = model.tokenizer.special_ids.union(model.info.eos_token_ids)
    while tokens and tokens[-1] in ends:
        tokens = tokens[:-1]
    for cut in range(min(_LONGEST_CHARACTER, len(tokens))):
        kept = tokens[: len(tokens) - cut]
        text = model.tokenizer.decode(kept, skip_special_tokens=False)
        if _BROKEN not in text[-1:]:
            break
    else:
        raise Unscored("it has no text")
    if not text or _BROKEN in text:
        raise Unscored("it is no text")
    return kept, text


def _tokens(model: ServedModel, text: str) -> Sequence[int]:
    """A text in a model's tokens. Raises Unscored for one that it could never have written."""
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    if model.tokenizer.decode(tokens, skip_special_tokens=False) != text:
        raise Unscored(f"{model.engine_name} cannot write it")
    return tokens


def _spellings(
    stable: ServedModel, mine: Sequence[int], candidate: ServedModel, theirs: Sequence[int], text: str
) -> tuple[Spelling, Spelling] | None:
    """How both models' tokens are written; None where the text is not simply what each of them adds."""
    found = []
    for model, tokens in ((stable, mine), (candidate, theirs)):
        pieces = model.tokenizer.pieces()
        if pieces is None or b"".join([pieces[token] for token in tokens]) != text.encode():
            return None
        found.append(Spelling(pieces, model.info.eos_token_ids))
    return found[0], found[1]


async def _read(
    model: ServedModel, answered: Answered, prompt: Sequence[int], tokens: Sequence[int]
) -> Reading:
    request = GenerateRequest(
        model=model.engine_name,
        tokens=GenerateRequest.pack_tokens([*prompt, *tokens]),
        params=_PARAMS,
        tenant=answered.principal.number,
        priority=-MAX_PRIORITY,
        cache_salt=answered.cache_salt,
        prompt_logprobs_from=len(prompt),
    )
    said = None
    try:
        async for output in model.client.generate(request):
            if output.prompt_logprobs is not None:
                said = output.prompt_logprobs
    except (QueueFullError, ModelNotFoundError):
        raise  # full, or let go meanwhile
    except (RequestError, ExecutionError) as error:
        raise Unscored(f"{model.engine_name} cannot read it: {type(error).__name__}") from None
    entries = [entry for entry in (said or [])[len(prompt) :] if entry is not None]
    if len(entries) != len(tokens):
        raise EngineDeadError("the engine gave the request up")
    return Reading(
        tokens=tokens,
        logprobs=[entry.logprob for entry in entries],
        tops=[entry.top_tokens[0] for entry in entries],
    )
