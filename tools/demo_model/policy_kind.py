"""What a sort of policy figure is made of."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from .vocabulary import Split, Vocabulary

Topics = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of figure: what it is called in answers, the frames that state it and ask for it, its topics."""

    answer: str
    missing: str
    states: dict[Split, tuple[str, ...]]
    asks: dict[Split, tuple[str, ...]]
    topics: Topics
    figure: Callable[[Vocabulary, random.Random], str]
