"""Words of block lists as regular expressions of the guard."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Final

__all__ = ["word_regex"]

_SPECIAL: Final = frozenset(r"\.^$*+?{}[]()|-")
_SPACE: Final = r"(?:\s|\u00a0){1,8}"
# Beyond it no character has a case.
_LAST_WITH_CASE: Final = 0x1E943


def word_regex(word: str) -> str:
    """Finds `word` in any case, of all alphabets, and with any space between its parts."""
    return _SPACE.join("".join(map(_any_case, part)) for part in word.split())


def _any_case(character: str) -> str:
    folded = character.casefold()
    forms = [_escaped(form) for form in sorted({character, *_same_when_folded().get(folded, ())})]
    if len(folded) > 1:
        forms.append("".join(map(_any_case, folded)))
    return forms[0] if len(forms) == 1 else f"(?:{'|'.join(forms)})"


def _escaped(character: str) -> str:
    return f"\\{character}" if character in _SPECIAL else character


@lru_cache(maxsize=1)
def _same_when_folded() -> dict[str, list[str]]:
    """The characters that differ only in case, by what they fold to."""
    groups = defaultdict(list)
    for code in range(_LAST_WITH_CASE + 1):
        character = chr(code)
        groups[character.casefold()].append(character)
    return {folded: characters for folded, characters in groups.items() if len(characters) > 1}
