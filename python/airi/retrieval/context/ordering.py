"""The order of documents in a prompt: as they stood in an earlier one, so that its prefix is computed once."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence

from airi.retrieval.context.passages import Passage

__all__ = ["PromptMemory"]


class PromptMemory:
    """Which documents earlier prompts began with, and in which order.

    A prompt whose documents begin as those of an earlier one shares its prefix with it, and an engine that caches
    prefixes computes the rest alone. So documents come first in the order of the earlier prompt that shares most
    tokens; then those that were used most; then by source and place, which is the whole order where nothing is
    remembered.

    One for each model and for whoever may share a prefix cache: the order of documents tells a little of what was
    asked.
    *Thread safety*: any thread.
    """

    def __init__(self, size: int = 256) -> None:
        """Remembers the last `size` prompts that differ."""
        self._size = size
        self._lock = threading.Lock()
        self._prompts: OrderedDict[tuple[str, ...], int] = OrderedDict()
        """What stands before the documents, then the documents; and how often that was asked."""
        self._uses: Counter[str] = Counter()

    def order(self, beginning: str, passages: Sequence[Passage], tokens: Sequence[int]) -> list[Passage]:
        """The passages in their order. `beginning` is the same for prompts that are the same up to their documents."""
        size = {each.key: count for each, count in zip(passages, tokens, strict=True)}
        with self._lock:
            shared = self._longest(beginning, size)
            place = {key: number for number, key in enumerate(shared)}
            return sorted(
                passages,
                key=lambda each: (
                    place.get(each.key, len(place)),
                    -self._uses[each.key],
                    each.place,
                    each.key,
                ),
            )

    def note(self, beginning: str, passages: Sequence[Passage]) -> None:
        """Remembers that a prompt was made of them, in this order."""
        prompt = (beginning, *(each.key for each in passages))
        with self._lock:
            self._prompts[prompt] = self._prompts.pop(prompt, 0) + 1
            self._uses.update(prompt[1:])
            if len(self._prompts) > self._size:
                forgotten, count = self._prompts.popitem(last=False)
                for key in forgotten[1:]:
                    self._uses[key] -= count
                self._uses = +self._uses

    def _longest(self, beginning: str, size: dict[str, int]) -> tuple[str, ...]:
        """The longest beginning of an earlier prompt that is made of these; of equal ones the latest."""
        best: tuple[str, ...] = ()
        best_tokens = 0
        for prompt in reversed(self._prompts):
            if prompt[0] != beginning:
                continue
            end = next((i for i, key in enumerate(prompt[1:], 1) if key not in size), len(prompt))
            tokens = sum(size[key] for key in prompt[1:end])
            if tokens > best_tokens:
                best, best_tokens = prompt[1:end], tokens
        return best
