"""Calls of lines in rollouts, as gates see them: what becomes of each is counted, and some answers are scored."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from airi.gateway.comparing import Score
from airi.gateway.errors import api_error_from
from airi.gateway.http import CallRecord, ClientGone
from airi.gateway.models import ServedModel
from airi.gateway.observing import Observing, is_repeating
from airi.gateway.scoring import Answered, PromptFor, Scorer, count, score
from airi.gateway.verdicts import Verdicts
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Phase, Rollout

if TYPE_CHECKING:
    from airi.gateway.choice import Choice
    from airi.gateway.declared import Declared, Read
    from airi.gateway.explaining import RequestTrace
    from airi.sampling_params import SamplingParams
    from airi.text import Tokenizer
    from airi.transport import GenerateRequest

log = logging.getLogger("airi.gateway")

__all__ = ["SharedWith", "Sight", "Trial", "TrialOf", "Watching"]


class Trial(NamedTuple):
    """What a call of a line in a rollout is part of."""

    rollout: Rollout
    release: str
    """That the call was given."""
    candidate: ServedModel | None
    """The call's model in the candidate's release; None while it is not loaded."""
    counts: bool = True
    """Whether gates see it: who chose a release is no fair sample of it."""


TrialOf = Callable[[CallRecord, ServedModel], Trial | None]
"""The trial of a call; None where its line is in no rollout."""

SharedWith = Callable[[ServedModel], Awaitable[int]]
"""How many rows of a search are also found with the vectors of another version. Raises as `score`."""


class Watching:
    """Sees the calls of lines in rollouts. *Thread safety*: none; one event loop."""

    def __init__(
        self,
        observing: Observing,
        scorer: Scorer,
        trial_of: TrialOf,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives numbers in [0, 1), by which answers are chosen that are scored."""
        self.observing, self.scorer, self.verdicts = observing, scorer, Verdicts()
        self._trial_of, self._draw = trial_of, draw

    async def close(self) -> None:
        """Judges nothing any more."""
        await self.scorer.close()
        await self.verdicts.close()

    def sight(self, record: CallRecord, model: ServedModel, may_shadow: Callable[[], bool]) -> Sight | None:
        """What sees a call; None where there is nothing to see. `may_shadow` decides whether its answer is scored."""
        trial = self._trial_of(record, model)
        if trial is None or trial.rollout.phase is Phase.PREPARING:
            return None  # while a candidate loads, stable is not what it is otherwise
        return Sight(self, trial, record, model, may_shadow)

    def score(
        self,
        trial: Trial,
        answered: Answered,
        stable: ServedModel,
        may_shadow: Callable[[], bool],
        trace: RequestTrace | None,
    ) -> None:
        """Has an answer of stable's scored, if it is chosen and may be; `trace`: of the request that it is of."""
        size = len(answered.tokens)

        def same(seen: Seen) -> None:
            count(Score(0.0, size, size, size, size), seen)

        async def read(candidate: ServedModel, seen: Seen) -> None:
            count(await score(answered, stable, candidate), seen)

        self._shadow(trial, stable, may_shadow, trace, same, read)

    def compare(
        self,
        trial: Trial,
        rows: int,
        shared_with: SharedWith,
        stable: ServedModel,
        may_shadow: Callable[[], bool],
        trace: RequestTrace | None,
    ) -> None:
        """Has a search of stable's made again with the candidate's vectors, if it is chosen and may be."""

        def same(seen: Seen) -> None:
            seen.overlap.add(rows, rows)

        async def read(candidate: ServedModel, seen: Seen) -> None:
            seen.overlap.add(await shared_with(candidate), rows)

        self._shadow(trial, stable, may_shadow, trace, same, read)

    def _shadow(
        self,
        trial: Trial,
        stable: ServedModel,
        may_shadow: Callable[[], bool],
        trace: RequestTrace | None,
        same: Callable[[Seen], None],
        read: Callable[[ServedModel, Seen], Awaitable[None]],
    ) -> None:
        """`same` counts what there is nothing to read for, `read` what the candidate says."""
        rollout, candidate = trial.rollout, trial.candidate
        is_chosen = self._draw() * 100 < rollout.shadow_percent
        if not is_chosen or trial.release != rollout.stable or candidate is None:
            return
        seen = self.observing.of(rollout, rollout.candidate)
        if candidate is stable:
            # The releases differ in other members: there is nothing to read.
            same(seen)
        elif self.scorer.is_full or may_shadow():
            ended = str if trace is None else trace.shadowed(candidate)
            self.scorer.run(partial(read, candidate, seen), stable, seen, ended)
        else:
            stable.metrics.shadowed("denied")
            if trace is not None:
                trace.shadowed(candidate)("denied")


class Sight:
    """One call of a line in a rollout. *Thread safety*: none; event loop only."""

    def __init__(
        self,
        watching: Watching,
        trial: Trial,
        record: CallRecord,
        model: ServedModel,
        may_shadow: Callable[[], bool],
    ) -> None:
        self._watching, self._model, self._may_shadow = watching, model, may_shadow
        self._principal, self._trace = record.principal, record.trace
        self.trial = trial
        """What it is part of."""
        self._first: tuple[Choice, GenerateRequest] | None = None
        self._with_schemas: list[Choice] = []
        self.seen: Seen = watching.observing.of(trial.rollout, trial.release) if trial.counts else Seen()
        """What its release's counts are added to."""
        self.prompt_for: PromptFor | None = None
        """How other models are asked the same."""
        self.declared: Declared | None = None
        """What its answers are to be."""
        self.error: Exception | None = None
        """What ended it early."""

    def asked(self, choice: Choice, request: GenerateRequest) -> None:
        """An answer is asked for."""
        choice.keep_tokens()
        if self._first is None:
            self._first = choice, request

    def answered(self, choice: Choice) -> None:
        """An answer has ended."""
        if choice.finish_reason not in ("stop", "length"):
            return
        seen, tokens = self.seen, choice.tokens
        seen.finished += 1
        seen.cut += choice.finish_reason == "length"
        seen.repeating += is_repeating(tokens)
        if self.declared is not None:
            self._with_schemas.append(choice)

    def ended(self) -> None:
        """The call has ended, and its client has all of its answer."""
        if not self.trial.counts:
            self._watching.observing.of(self.trial.rollout, self.trial.release).chosen += 1
            return
        if self.error is None or _is_ours(self.error):
            self.seen.requests += 1
            self.seen.errors += self.error is not None
        for choice in self._with_schemas:
            try:
                self._judge(choice)
            except Exception as error:  # the call itself went well
                log.error("an answer of %s was not judged: %s", self._model.name, type(error).__name__)
        if self.error is None and self._first is not None and self.prompt_for is not None:
            try:
                self._score(*self._first, self.prompt_for)
            except Exception as error:  # the call itself went well
                log.error("an answer of %s was not scored: %s", self._model.name, type(error).__name__)

    def searched(self, rows: int, shared_with: SharedWith) -> None:
        """A search has found so many rows with what the call gave. Once it has ended."""
        if rows and self.error is None and self.trial.counts:
            self._watching.compare(self.trial, rows, shared_with, self._model, self._may_shadow, self._trace)

    def _judge(self, choice: Choice) -> None:
        if self.declared is not None:
            read = partial(_read, self.declared, self._model.tokenizer, choice.tokens, choice.params)
            self._watching.verdicts.offer(self._principal.tenant, read, self.seen)

    def _score(self, choice: Choice, request: GenerateRequest, prompt_for: PromptFor) -> None:
        if not choice.tokens or choice.finish_reason is None:
            return
        answered = Answered(
            principal=self._principal,
            prompt=array("i", request.tokens),
            prompt_for=prompt_for,
            tokens=choice.tokens,
            cache_salt=request.cache_salt,
        )
        self._watching.score(self.trial, answered, self._model, self._may_shadow, self._trace)


def _read(
    declared: Declared, tokenizer: Tokenizer, tokens: Sequence[int], params: SamplingParams, most: int
) -> Read | None:
    """What has to hold of an answer of these tokens."""
    stream = tokenizer.stream(
        stop=params.stop,
        skip_special_tokens=params.skip_special_tokens,
        include_stop=params.include_stop_str_in_output,
        min_tokens=params.min_tokens,
        show=() if declared.format is None else declared.format.mark_ids,
    )
    return declared.read(stream.push(list(tokens)) + stream.finish(), most)


def _is_ours(error: Exception) -> bool:
    """Whether the server is to blame for an error, and not who called, or how many did."""
    if isinstance(error, ClientGone):
        return False
    known = api_error_from(error)
    return known is None or known.status >= 500
