"""Requests on their way into the core's queue: one whose text has a form waits here until its grammar is there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from airi.engine.constraints import Constraint, ConstraintCompiler
from airi.engine.isolation import Salt
from airi.engine.loading import HostedModel
from airi.engine.requests import RequestState
from airi.errors import AiriError, QueueFullError, RequestError
from airi.outputs import FinishReason, Output, error_info
from airi.structured_output import StructuredOutput

__all__ = ["Desk", "Submission"]

COMPILE_LIMIT_S = 20.0
"""How long a request waits for its grammar, those before it included."""
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


@dataclass(frozen=True, slots=True)
class _Held:
    submission: Submission
    constraint: Future[Constraint]
    until_us: int


class Desk:
    """Compiles grammars beside the steps and hands requests on in the order in which theirs are ready.

    *Thread safety*: `cancel` may come from any thread; the engine's thread calls the rest.
    *Invariant*: a request that is held is handed on, or ends with an output, and nothing of it is left.
    """

    def __init__(self, *, max_held: int) -> None:
        self._max_held = max_held
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._cancelled: set[int] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._compilers: dict[int, ConstraintCompiler] = {}
        self._retired: deque[list[Constraint]] = deque()

    @property
    def request_ids(self) -> list[int]:
        """Requests that wait for their grammars."""
        return list(self._held)

    def prepare(self, models: Sequence[HostedModel]) -> None:
        """Reads what grammars need of these models, for those that have it."""
        wait([self._compiler(model).prepare() for model in models])

    def hold(self, submission: Submission, structured: StructuredOutput, now_us: int) -> None:
        """Takes a request that waits for its grammar; raises QueueFullError."""
        if len(self._held) >= self._max_held:
            raise QueueFullError(f"the queue is full: {len(self._held)} requests wait for their grammars")
        state = submission.state
        constraint = self._compiler(submission.model).compile(
            structured, stop_ids=state.stop_ids, min_tokens=state.params.min_tokens
        )
        until_us = now_us + round(COMPILE_LIMIT_S * 1e6)
        with self._lock:
            self._held[state.request_id] = _Held(submission, constraint, until_us)

    def cancel(self, request_id: int) -> bool:
        """Ends a request that is held, with the next `hand_on`; whether it was. Nothing is handed on meanwhile."""
        with self._lock:
            if request_id not in self._held:
                return False
            self._cancelled.add(request_id)
            return True

    def hand_on(self, submit: Callable[[Submission], None], now_us: int, *, is_idle: bool) -> list[Output]:
        """Has `submit`, which may raise RequestError, give the core what is ready.

        Last outputs of what was cancelled, refused or late. Where the engine `is_idle` it waits a little for a grammar.
        """
        if not self._held:
            return []
        if is_idle and not self._cancelled:
            wait([held.constraint for held in self._held.values()], _IDLE_S, FIRST_COMPLETED)
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
        return (
            state.request_id in self._cancelled or late or held.constraint.done() or held.until_us <= now_us
        )

    def _settle(self, held: _Held, submit: Callable[[Submission], None], now_us: int) -> Output | None:
        """The last output of a request; None where it was handed on."""
        state = held.submission.state
        if state.request_id in self._cancelled:
            return _ended(held, "cancelled")
        if state.deadline_us is not None and state.deadline_us <= now_us:
            return _ended(held, "deadline")
        try:
            if not held.constraint.done():
                held.constraint.cancel()
                raise RequestError(
                    f"structured: the grammar was not ready within {COMPILE_LIMIT_S:g} s", field="structured"
                )
            state.constraint = held.constraint.result()
            submit(held.submission)
        except AiriError as error:
            return Output(state.request_id, [], "error", error=error_info(error))
        return None

    def _compiler(self, model: HostedModel) -> ConstraintCompiler:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="airi-grammar")
        compiler = self._compilers.get(model.index)
        if compiler is None:
            compiler = ConstraintCompiler(model.path, model.vocab_size, model.eos_token_ids, self._pool)
            self._compilers[model.index] = compiler
        return compiler

    # -- matchers of requests that have ended --------------------------------------------------

    def retire(self, constraint: Constraint) -> None:
        """A request has ended; steps that are on their way may still ask about it."""
        if not self._retired:
            self._retired.append([])
        self._retired[-1].append(constraint)

    def after_step(self) -> None:
        """A step was collected: what retired before all that may have been on their way is let go."""
        if self._retired:
            self._retired.append([])
            if len(self._retired) > _STEPS_AHEAD + 1:
                for constraint in self._retired.popleft():
                    constraint.close()
            if not any(self._retired):
                self._retired.clear()

    def close(self) -> None:
        """Ends the threads that compile. Nothing may be called after it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _ended(held: _Held, reason: FinishReason) -> Output:
    held.constraint.cancel()
    state = held.submission.state
    return Output(state.request_id, [], reason, num_prompt_tokens=len(state.prompt))
