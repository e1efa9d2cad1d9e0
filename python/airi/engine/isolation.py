"""Which part of a prompt's cached KV is shared with whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CacheRegions"]

Salt = tuple[int, bytes]
"""KV from this token on is shared only with requests that bring the same bytes at the same place."""


class CacheRegions:
    """Salts of one model's requests: what a caller asks for and, with strict isolation, its tenant's own.

    Strictly isolated, a prompt shares with other tenants what it has in common with one of `public_prefixes`, and
    nothing else; what others send can then not be told from how much of one's own prompt is cached.

    *Thread safety*: none.
    """

    def __init__(self, public_prefixes: Sequence[Sequence[int]], *, strict: bool) -> None:
        self._strict = strict
        self._public = [np.array(prefix, np.int64) for prefix in public_prefixes]
        self._age = 0

    def forget(self) -> None:
        """Has later prompts share nothing with those before: what was cached of them has gone."""
        self._age += 1

    def salts(
        self, prompt: NDArray[np.int32], tenant: int, cache_salt: bytes | None, cache_salt_from: int
    ) -> list[Salt]:
        """The salts of a prompt, in order; a block is private from the first whose place lies in it."""
        salts: list[Salt] = [(0, b"age" + self._age.to_bytes(8, "little"))] if self._age else []
        if self._strict:
            salts.append((self._public_length(prompt), b"tenant" + tenant.to_bytes(8, "little", signed=True)))
        if cache_salt:
            salts.append((cache_salt_from, cache_salt))
        return salts

    def _public_length(self, prompt: NDArray[np.int32]) -> int:
        """How many leading tokens some public prefix begins with."""
        return max((_num_common(prompt, prefix) for prefix in self._public), default=0)


def _num_common(prompt: NDArray[np.int32], prefix: NDArray[np.int64]) -> int:
    length = min(len(prompt), len(prefix))
    differing = np.flatnonzero(prompt[:length] != prefix[:length])
    return int(differing[0]) if len(differing) else length
