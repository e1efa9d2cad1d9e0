"""Content rules: patterns, scanners of streams, masks of tokens. Offsets are bytes."""

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from airi._core import _PybindType

class Validator(enum.Enum):
    """What a complete match must pass beside its pattern."""

    NONE = 0
    LUHN = 1
    IBAN = 2

class Pattern(metaclass=_PybindType):
    """One rule's text and how it is read: a regular expression, or a literal, which alone may be bytes.

    name is what errors call it. ignore_case: ASCII letters. word_boundary: matches neither follow nor precede a
    letter, a digit or an underscore of ASCII. holds: Scanner.open_start waits for it.
    """

    def __init__(
        self,
        text: str | bytes,
        *,
        name: str,
        literal: bool = False,
        ignore_case: bool = False,
        word_boundary: bool = False,
        validator: Validator = ...,
        holds: bool = True,
    ) -> None: ...
    @property
    def name(self) -> str: ...

class Automaton(metaclass=_PybindType):
    """Many patterns as tables. Immutable.

    ValueError, one line, names the pattern that is not accepted: by character, or by the numbers of states.
    """

    def __init__(
        self, patterns: Sequence[Pattern], *, max_states: int = 32768, max_groups: int = 64
    ) -> None: ...
    def scan(self, data: bytes) -> list[tuple[int, int, int]]:
        """The matches of a whole text, as Scanner reports them."""

    def canonical(self) -> bytes:
        """All that matching depends on; a digest of it names the automaton."""

    @property
    def num_patterns(self) -> int: ...
    @property
    def num_states(self) -> int: ...
    @property
    def num_groups(self) -> int: ...

class Scanner(metaclass=_PybindType):
    """Finds matches in a text that comes in pieces; what is found does not depend on the pieces.

    Matches are (pattern, start, end): of each pattern the leftmost, of those the longest, none overlapping; each is
    reported with the byte that decides it.
    """

    def __init__(self, automaton: Automaton) -> None: ...
    def feed(self, data: bytes) -> list[tuple[int, int, int]]: ...
    def finish(self) -> list[tuple[int, int, int]]:
        """The text ends here. Only reset() may follow."""

    def reset(self) -> None: ...
    @property
    def open_start(self) -> int | None:
        """The smallest start of a match, not reported yet, that some text to follow would complete."""

    @property
    def position(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
    def check_invariants(self) -> None: ...

class MaskState(metaclass=_PybindType):
    """Where an output stands for its masks. A value; bytes() of it goes into certificates. Made by TokenMasks."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __bytes__(self) -> bytes: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

class TokenMasks(metaclass=_PybindType):
    """Which next tokens would complete a match. Tokens without bytes never do.

    text: the output is shown as text and may be cut behind any token. Then tokens that no UTF-8 goes on with are
    forbidden too, and those behind which the end of the text, at its last whole character, would complete a match.
    ValueError where a pattern has a validator.
    """

    def __init__(
        self,
        automaton: Automaton,
        tokens: Sequence[bytes],
        *,
        cache_bytes: int = 67108864,
        text: bool = False,
    ) -> None: ...
    def after(self, text: bytes = ...) -> MaskState:
        """The state after a text, whatever matches are within it."""

    def advance(self, state: MaskState, token: int) -> MaskState | None:
        """None where the token completes a match."""

    def fill(self, state: MaskState, out: npt.NDArray[np.uint32]) -> int:
        """Sets the bit of every forbidden token in out, [num_words] uint32, and returns how many there are."""

    def ends_match(self, state: MaskState) -> bool:
        """Whether the output's end would complete a match."""

    def restore(self, data: bytes) -> MaskState: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_words(self) -> int: ...
    @property
    def num_cached(self) -> int: ...
