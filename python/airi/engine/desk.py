"""Requests on their way into the core's queue: one that has rules waits here until they are there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from airi.engine.constraints import (
    Constraint,
    ConstraintCompiler,
    ForbiddenTexts,
    ForbiddenWalk,
    MaskedModel,
    RuleThreads,
    Shown,
    TokenRules,
)
from airi.engine.isolation import Salt
from airi.engine.loading import HostedModel
from airi.engine.requests import RequestState
from airi.errors import AiriError, EngineError, QueueFullError, RequestError
from airi.forbidden import ForbiddenSet
from airi.outputs import FinishReason, Output, error_info

__all__ = ["Desk", "Submission"]

COMPILE_LIMIT_S = 20.0
"""How long a request waits for its rules, those of others before it included."""
_IDLE_S = 0.002
_THREADS = 2
_STEPS_AHEAD = 2
"""Steps that may be on their way when a request ends, and have a row of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request as the core is to be told of it."""

    state: RequestState
    model: HostedModel
    tenant: int
    band: int
    salts: list[Salt]
    forbidden: bytes | None = None
    """The set of texts that this one may not become, by its digest."""
    shown_tokens: tuple[int, ...] = ()
    """Special tokens that are text none the less."""

    @property
    def has_rules(self) -> bool:
        """Whether its tokens must keep to anything."""
        return self.forbidden is not None or self.state.params.structured is not None


@dataclass(frozen=True, slots=True)
class _Held:
    submission: Submission
    form: Future[Constraint] | None
    walk: Future[ForbiddenWalk] | None
    until_us: int

    @property
    def pending(self) -> list[Future[Any]]:
        """What is not there yet."""
        return [each for each in (self.form, self.walk) if each is not None and not each.done()]

    def rules(self) -> TokenRules:
        """Once all is there. Raises RequestError or ConfigError for what cannot be."""
        state = self.submission.state
        return TokenRules(
            form=None if self.form is None else self.form.result(),
            walk=None if self.walk is None else self.walk.result(),
            stop_ids=state.stop_ids,
            min_tokens=state.params.min_tokens,
        )


class Desk:
    """Makes rules beside the steps and hands requests on in the order in which theirs are ready.

    *Thread safety*: `cancel` may come from any thread; the engine's thread calls the rest.
    *Invariant*: a request that is held is handed on, or ends with an output, and nothing of it is left.
    """

    def __init__(self, *, max_held: int) -> None:
        self._max_held = max_held
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._cancelled: set[int] = set()
        self._pool: RuleThreads | None = None
        self._compilers: dict[int, ConstraintCompiler] = {}
        self._forbidden: ForbiddenTexts | None = None
        self._retired: deque[list[TokenRules]] = deque()

    @property
    def request_ids(self) -> list[int]:
        """Requests that wait for their rules."""
        return list(self._held)

    def prepare(self, models: Sequence[HostedModel]) -> None:
        """Reads what grammars need of these models, for those that have it."""
        wait([self._compiler(model).prepare() for model in models])

    def forbid(self, owner: int, sets: Sequence[tuple[ForbiddenSet, Sequence[HostedModel]]]) -> Future[None]:
        """As `ForbiddenTexts.replace`."""
        masked = [
            (each, [MaskedModel(model.index, model.path, model.vocab_size) for model in models])
            for each, models in sets
        ]
        return self._texts().replace(owner, masked)

    def hold(self, submission: Submission, now_us: int) -> None:
        """Takes a request that waits for its rules; raises QueueFullError, and RequestError for an unknown set."""
        if len(self._held) >= self._max_held:
            raise QueueFullError(f"the queue is full: {len(self._held)} requests wait for their rules")
        state = submission.state
        structured = state.params.structured
        walk = None if submission.forbidden is None else self._walk(submission, submission.forbidden)
        form = None
        if structured is not None:
            form = self._compiler(submission.model).compile(
                structured,
                tenant=submission.tenant,
                stop_ids=state.stop_ids,
                min_tokens=state.params.min_tokens,
            )
        until_us = now_us + round(COMPILE_LIMIT_S * 1e6)
        with self._lock:
            self._held[state.request_id] = _Held(submission, form, walk, until_us)

    def _walk(self, submission: Submission, forbidden: bytes) -> Future[ForbiddenWalk]:
        state = submission.state
        shown = Shown(state.params.skip_special_tokens, frozenset(submission.shown_tokens))
        hidden = () if state.params.include_stop_str_in_output else state.stop_ids.tolist()
        return self._texts().walk(forbidden, submission.model.index, state.prompt, shown, hidden)

    def cancel(self, request_id: int) -> bool:
        """Ends a request that is held, with the next `hand_on`; whether it was. Nothing is handed on meanwhile."""
        with self._lock:
            if request_id not in self._held:
                return False
            self._cancelled.add(request_id)
            return True

    def hand_on(self, submit: Callable[[Submission], None], now_us: int, *, is_idle: bool) -> list[Output]:
        """Has `submit`, which may raise RequestError, give the core what is ready.

        Last outputs of what was cancelled, refused or late. Where the engine `is_idle` it waits a little for rules.
        """
        if not self._held:
            return []
        if is_idle and not self._cancelled:
            pending = [held.pending for held in self._held.values()]
            if all(pending):
                wait([each for one in pending for each in one], _IDLE_S, FIRST_COMPLETED)
        outputs = []
        for request_id, held in list(self._held.items()):
            with self._lock:
                if not self._is_settled(held, now_us):
                    continue
                output = self._settle(held, submit, now_us)
                del self._held[request_id]
                self._cancelled.discard(request_id)
            if output is not None:
                outputs.append(output)
        return outputs

    def _is_settled(self, held: _Held, now_us: int) -> bool:
        """Whether a request waits no longer."""
        state = held.submission.state
        late = state.deadline_us is not None and state.deadline_us <= now_us
        return state.request_id in self._cancelled or late or not held.pending or held.until_us <= now_us

    def _settle(self, held: _Held, submit: Callable[[Submission], None], now_us: int) -> Output | None:
        """The last output of a request; None where it was handed on."""
        state = held.submission.state
        if state.request_id in self._cancelled:
            return _ended(held, "cancelled")
        if state.deadline_us is not None and state.deadline_us <= now_us:
            return _ended(held, "deadline")
        try:
            if held.pending:
                raise _late(held)
            state.rules = held.rules()
            submit(held.submission)
        except AiriError as error:
            return Output(state.request_id, [], "error", error=error_info(error))
        return None

    def _compiler(self, model: HostedModel) -> ConstraintCompiler:
        compiler = self._compilers.get(model.index)
        if compiler is None:
            compiler = ConstraintCompiler(model.path, model.vocab_size, model.eos_token_ids, self._threads())
            self._compilers[model.index] = compiler
        return compiler

    def _texts(self) -> ForbiddenTexts:
        if self._forbidden is None:
            self._forbidden = ForbiddenTexts(self._threads())
        return self._forbidden

    def _threads(self) -> RuleThreads:
        if self._pool is None:
            self._pool = RuleThreads(_THREADS)
        return self._pool

    # -- rules of requests that have ended ----------------------------------------------------

    def retire(self, rules: TokenRules) -> None:
        """A request has ended; steps that are on their way may still ask about it."""
        if not self._retired:
            self._retired.append([])
        self._retired[-1].append(rules)

    def after_step(self) -> None:
        """A step was collected: what retired before all that may have been on their way is let go."""
        if self._retired:
            self._retired.append([])
            if len(self._retired) > _STEPS_AHEAD + 1:
                for rules in self._retired.popleft():
                    rules.close()
            if not any(self._retired):
                self._retired.clear()

    def close(self) -> None:
        """Ends the threads that compile. Nothing may be called after it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _late(held: _Held) -> AiriError:
    """What a request is told that has waited long enough for its rules."""
    field = "structured" if held.form in held.pending else "forbidden"
    if _give_up(held):
        return RequestError(f"{field}: was not ready within {COMPILE_LIMIT_S:g} s", field=field)
    return EngineError(
        f"{field}: its turn did not come within {COMPILE_LIMIT_S:g} s, as the rules of other requests were being made; "
        "try again a little later"
    )


def _give_up(held: _Held) -> bool:
    """Takes back what has not begun; whether anything has."""
    begun = [each for each in held.pending if not each.cancel()]
    return bool(begun)


def _ended(held: _Held, reason: FinishReason) -> Output:
    _give_up(held)
    state = held.submission.state
    return Output(state.request_id, [], reason, num_prompt_tokens=len(state.prompt))
