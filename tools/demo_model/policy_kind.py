"""What a sort of policy figure is made of."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from .vocabulary import Split, Vocabulary

# The many ways to say "is" in training: so many that the rest of a sentence is easier copied than known by heart.
AMOUNTS_TO = (
    "[is|is|is|is now|stands at|comes to|amounts to|has been set at|is set at|was set at|remains|remains at|stays at|"
    "equals|reaches|totals|runs to|adds up to|makes|is listed at|is rated at|is quoted at|is held at|is kept at|"
    "was changed to|was raised to|was lowered to|has risen to|has fallen to|goes to|rises to|falls to|is still|"
    "is exactly|is just|is only|may be|can be|will be|would be|shall be|has to be|is said to be|is known to be]"
)

Topics = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of figure: how replies begin, the frames that state it and ask for it, its topics.

    `cues` are the words by which a question asks for this sort, whatever else stands in it.
    """

    lead: str
    cues: tuple[str, ...]
    states: dict[Split, tuple[str, ...]]
    asks: dict[Split, tuple[str, ...]]
    topics: Topics
    figure: Callable[[Vocabulary, random.Random], str]
