"""Grammars of requests, compiled beside the steps and kept for the next request that asks for the same."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.constraints.constraint import Constraint
from airi.engine.constraints.grammars import grammar_of, new_matcher, refusal_of
from airi.engine.constraints.threads import RuleThreads
from airi.engine.constraints.tokens import TokenTable
from airi.errors import RequestError
from airi.structured_output import StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["ConstraintCompiler"]

_MAX_KEPT = 64
"""Grammars, of all requests of a model together."""
_MAX_IDLE = 4
"""Matchers of one grammar that wait for a request."""
_MAX_USES = 64
"""Requests that one matcher serves: what it has learnt of its grammar takes memory, which so is bounded."""


@dataclass(slots=True)
class _Kept:
    """What is known of one grammar."""

    grammar: str = ""
    refusal: RequestError | None = None
    idle: list[tuple[LLMatcher, int]] = field(default_factory=list)
    """With how many requests each has served."""


class ConstraintCompiler:
    """Makes the constraints of one model's requests.

    A matcher serves one request at a time: what its grammar costs, or breaks, is no other request's.

    *Thread safety*: any thread may call it. *Invariant*: at most `_MAX_KEPT` grammars and `_MAX_IDLE` idle matchers of
    each are held.
    """

    def __init__(
        self, path: Path, vocab_size: int, eos_token_ids: tuple[int, ...], pool: RuleThreads
    ) -> None:
        """Nothing is loaded before the first request."""
        self._path = path
        self._vocab_size = vocab_size
        self._eos_ids = np.array(eos_token_ids, np.int32)
        self._pool = pool
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._table_lock = threading.Lock()
        self._table: TokenTable | RequestError | None = None

    def prepare(self) -> Future[TokenTable]:
        """Reads the tokenizer, which holds the interpreter's lock for some tenths of a second where it is large."""
        return self._pool.submit(self._tokens)

    def compile(
        self, structured: StructuredOutput, *, tenant: int, stop_ids: NDArray[np.int32], min_tokens: int
    ) -> Future[Constraint]:
        """The constraint of a request that `stop_ids` end; RequestError, once it is known, for one that cannot be.

        It runs once it is being made, which waits for those of the same tenant before it.
        """
        return self._pool.submit_for(tenant, self._constraint, structured, stop_ids, min_tokens)

    def _constraint(
        self, structured: StructuredOutput, stop_ids: NDArray[np.int32], min_tokens: int
    ) -> Constraint:
        table = self._tokens()
        digest = hashlib.sha256(f"{structured.kind}:{structured.text}".encode()).digest()
        matcher, uses = self._matcher(table, structured, digest)
        constraint = Constraint(
            matcher,
            table,
            partial(self._take_back, digest, uses=uses + 1),
            eos_ids=self._eos_ids,
            stop_ids=stop_ids,
            min_tokens=min_tokens,
        )
        if not len(constraint.closing_ids):
            raise RequestError(
                "ignore_eos: nothing could end the text, which has a form; stop_token_ids may name a special token",
                field="ignore_eos",
            )
        return constraint

    def _tokens(self) -> TokenTable:
        with self._table_lock:
            if self._table is None:
                try:
                    self._table = TokenTable.load(self._path, self._vocab_size, self._eos_ids.tolist())
                except RequestError as error:
                    self._table = error
        if isinstance(self._table, RequestError):
            raise self._table
        return self._table

    def _matcher(
        self, table: TokenTable, structured: StructuredOutput, digest: bytes
    ) -> tuple[LLMatcher, int]:
        with self._lock:
            kept = self._kept.get(digest)
            if kept is not None:
                self._kept.move_to_end(digest)
                if kept.refusal is not None:
                    raise kept.refusal
                if kept.idle:
                    return kept.idle.pop()
        try:
            grammar = kept.grammar if kept is not None else grammar_of(structured)
            matcher = new_matcher(table, grammar, structured.kind)
            if matcher.is_error():
                raise refusal_of(structured, matcher.get_error())
        except RequestError as error:
            self._keep(digest, _Kept(refusal=error))
            raise
        if kept is None:
            self._keep(digest, _Kept(grammar))
        return matcher, 0

    def _keep(self, digest: bytes, kept: _Kept) -> None:
        with self._lock:
            self._kept[digest] = kept
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)

    def _take_back(self, digest: bytes, matcher: LLMatcher, *, uses: int) -> None:
        if uses >= _MAX_USES or not matcher.reset():
            return
        with self._lock:
            kept = self._kept.get(digest)
            if kept is not None and len(kept.idle) < _MAX_IDLE:
                kept.idle.append((matcher, uses))
