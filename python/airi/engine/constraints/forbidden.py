"""Sets of forbidden texts: which an engine knows, and where the text of a request stands among one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from airi._core import guard
from airi.errors import AiriError, CheckpointError, ConfigError, RequestError
from airi.forbidden import ForbiddenSet

if TYPE_CHECKING:
    from airi.text import ByteDetokenizer, Pieces, Tokenizer

__all__ = ["ForbiddenTexts", "ForbiddenWalk", "MaskedModel", "Shown", "Vocabulary"]

_CACHE_BYTES = 16 << 20
"""Of masks of one set over one vocabulary."""
_STATES_KEPT = 4
"""More than steps can be on their way when a request is preempted."""


class Shown(NamedTuple):
    """Which special tokens are text."""

    skip_special_tokens: bool = True
    show: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokens as texts are made of them. Knows nothing of any set."""

    tokenizer: Tokenizer
    size: int

    @classmethod
    def load(cls, path: Path, size: int) -> Vocabulary:
        """Of the checkpoint in a folder, for logits [size]; ConfigError where its texts have no bytes of their own."""
        from airi.text import Tokenizer

        try:
            tokenizer = Tokenizer.load(path)
        except CheckpointError as error:
            raise ConfigError(
                f"forbidden texts: the model has no tokenizer: {error}", field="forbid"
            ) from None
        if tokenizer.pieces() is None:
            raise ConfigError(
                f"forbidden texts: {path / 'tokenizer.json'} has a decoder that looks at neighbours, so the model's "
                "tokens have no bytes of their own and cannot be masked",
                field="forbid",
            )
        return cls(tokenizer, size)

    def masks(self, automaton: guard.Automaton, shown: Shown, *, first: bool = False) -> guard.TokenMasks:
        """Masks of an automaton over these tokens; `first`: as they are where a text begins."""
        pieces = self.pieces(shown)
        bytes_of = pieces.first if first else pieces.__getitem__
        tokens = [bytes_of(token) for token in range(self.size)]
        return guard.TokenMasks(automaton, tokens, cache_bytes=_CACHE_BYTES, text=True)

    def pieces(self, shown: Shown) -> Pieces:
        """The bytes of each token."""
        return self.detokenizer((), shown).pieces

    def detokenizer(self, prompt: Sequence[int], shown: Shown) -> ByteDetokenizer:
        """What makes the text behind a prompt."""
        from airi.text import ByteDetokenizer

        made = self.tokenizer.detokenizer(
            prompt, skip_special_tokens=shown.skip_special_tokens, show=tuple(shown.show)
        )
        if not isinstance(made, ByteDetokenizer):
            raise TypeError("a tokenizer without pieces was taken for one that has them")
        return made


class _Stand(NamedTuple):
    draw: int
    """Tokens so far."""
    state: guard.MaskState
    at_start: bool
    """Whether none of them was text yet, which is written differently there."""


class ForbiddenWalk:
    """Where the text of one request stands among the texts that it may not become.

    It walks over what a client is shown: the bytes of the tokens behind the prompt, and before them those of a
    character that the prompt has begun.

    *Thread safety*: one thread pushes; others may read what was pushed before. *Invariant*: the text so far has no
    match, wherever behind a token it ends.
    """

    def __init__(
        self,
        masks: guard.TokenMasks,
        first: guard.TokenMasks,
        detokenizer: ByteDetokenizer,
        hidden_ids: Collection[int],
    ) -> None:
        """`first`: masks of tokens as they are where a text begins. `hidden_ids`: end the request and are no text."""
        self._masks = masks
        self._first = first
        self._pieces: Mapping[int, bytes] = detokenizer.pieces
        self._hidden = frozenset(hidden_ids)
        begin = masks.after(detokenizer.waiting)
        self._stands: tuple[_Stand, ...] = (_Stand(0, begin, detokenizer.at_start),)

    @property
    def vocab_size(self) -> int:
        """Of its masks."""
        return self._masks.vocab_size

    def push(self, draw: int, token: int) -> bool:
        """A token was sampled after `draw` others; False where no text may have it there."""
        stand = self._stand(draw)
        if stand is None:
            return False
        state: guard.MaskState | None = stand.state
        if token not in self._hidden:
            state = self._masks_at(stand).advance(stand.state, token)
        if state is None:
            return False
        before = tuple(each for each in self._stands if each.draw <= draw)[-_STATES_KEPT + 1 :]
        at_start = stand.at_start and (token in self._hidden or not self._pieces[token])
        self._stands = (*before, _Stand(draw + 1, state, at_start))
        return True

    def allow(self, mask: NDArray[np.uint32], draw: int) -> int | None:
        """Makes a mask of what may follow `draw` tokens; how many may not, None where the text is not known."""
        stand = self._stand(draw)
        if stand is None:
            return None
        banned = self._masks_at(stand).fill(stand.state, mask)
        np.invert(mask, out=mask)
        for token in self._hidden:
            mask[token >> 5] |= np.uint32(1 << (token & 31))
        return banned

    def state_after(self, draw: int) -> bytes | None:
        """Where the text of the first `draw` tokens stands, for a certificate; None where that is long ago."""
        stand = self._stand(draw)
        return None if stand is None else bytes(stand.state)

    def _stand(self, draw: int) -> _Stand | None:
        return next((each for each in reversed(self._stands) if each.draw == draw), None)

    def _masks_at(self, stand: _Stand) -> guard.TokenMasks:
        return self._first if stand.at_start else self._masks


@dataclass(frozen=True, slots=True)
class MaskedModel:
    """A model whose tokens are to be masked."""

    index: int
    path: Path
    vocab_size: int


class _MasksOf(NamedTuple):
    """Masks of one set over one model's vocabulary."""

    digest: bytes
    model: int
    shown: Shown
    first: bool


class ForbiddenTexts:
    """The sets that an engine's requests may name, and their masks over its models' vocabularies.

    *Thread safety*: one thread calls it; its pool's do the work. *Invariant*: sets that no owner names are let go.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._owned: dict[int, frozenset[bytes]] = {}
        self._automata: dict[bytes, Future[guard.Automaton]] = {}
        self._vocabularies: dict[int, Future[Vocabulary]] = {}
        self._masks: dict[_MasksOf, Future[guard.TokenMasks]] = {}

    def replace(self, owner: int, sets: Sequence[tuple[ForbiddenSet, Sequence[MaskedModel]]]) -> Future[None]:
        """From now on requests of `owner` may name these sets, each for its models, and those of before no more.

        Done once their masks are there: requests may name them at once and wait. ConfigError for a set, or a model,
        that there can be no masks of.
        """
        self._owned[owner] = frozenset(each.digest for each, _ in sets)
        if not sets:
            del self._owned[owner]
        self._drop_unowned()
        wanted: list[tuple[_MasksOf, Future[guard.Automaton], Future[Vocabulary]]] = []
        for each, models in sets:
            if each.digest not in self._automata:
                self._automata[each.digest] = self._pool.submit(each.automaton)
            for model in models:
                if model.index not in self._vocabularies:
                    loading = self._pool.submit(Vocabulary.load, model.path, model.vocab_size)
                    self._vocabularies[model.index] = loading
                masks = _MasksOf(each.digest, model.index, Shown(), first=False)
                wanted.append((masks, self._automata[each.digest], self._vocabularies[model.index]))
        return self._pool.submit(self._prepare, wanted)

    def walk(
        self,
        digest: bytes,
        model: int,
        prompt: NDArray[np.int32],
        shown: Shown,
        hidden_ids: Collection[int],
    ) -> Future[ForbiddenWalk]:
        """The walk of the text behind a prompt; RequestError where nobody has told of the set, for the model."""
        automaton, vocabulary = self._automata.get(digest), self._vocabularies.get(model)
        if automaton is None or vocabulary is None:
            raise RequestError(
                f"forbidden: the engine was told of no set {digest.hex()[:16]} of forbidden texts for this model",
                field="forbidden",
            )
        work = partial(self._walk, digest, model, automaton, vocabulary, prompt, shown, frozenset(hidden_ids))
        ready = self._masks.get(_MasksOf(digest, model, shown, first=False))
        if ready is None or not ready.done():
            return self._pool.submit(work)
        made: Future[ForbiddenWalk] = Future()
        try:
            made.set_result(work())
        except AiriError as error:
            made.set_exception(error)
        return made

    def _drop_unowned(self) -> None:
        owned = frozenset().union(*self._owned.values())
        with self._lock:
            self._automata = {digest: each for digest, each in self._automata.items() if digest in owned}
            self._masks = {key: each for key, each in self._masks.items() if key.digest in owned}

    def _prepare(
        self, wanted: Sequence[tuple[_MasksOf, Future[guard.Automaton], Future[Vocabulary]]]
    ) -> None:
        for each in wanted:
            self._masks_of(*each)

    def _walk(
        self,
        digest: bytes,
        model: int,
        automaton: Future[guard.Automaton],
        vocabulary: Future[Vocabulary],
        prompt: NDArray[np.int32],
        shown: Shown,
        hidden_ids: frozenset[int],
    ) -> ForbiddenWalk:
        detokenizer = vocabulary.result().detokenizer(prompt.tolist(), shown)
        masks, first = (
            self._masks_of(_MasksOf(digest, model, shown, at_start), automaton, vocabulary)
            for at_start in (False, detokenizer.at_start)
        )
        return ForbiddenWalk(masks, first, detokenizer, hidden_ids)

    def _masks_of(
        self, key: _MasksOf, automaton: Future[guard.Automaton], vocabulary: Future[Vocabulary]
    ) -> guard.TokenMasks:
        with self._lock:
            known = self._masks.get(key)
            if known is None:
                making = self._masks[key] = Future()
        if known is not None:
            return known.result()
        try:
            making.set_result(vocabulary.result().masks(automaton.result(), key.shown, first=key.first))
        except BaseException as error:
            making.set_exception(error)
        return making.result()
