"""Patterns and texts over a few characters, so that matches are frequent, overlap and stay open."""

from __future__ import annotations

from hypothesis import strategies as st

ALPHABET = "ab1 é"

_ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "1",
        " ",
        "é",
        "ab",
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"\W",
        "[ab]",
        "[^a]",
        "[aé]",
        "[^é ]",
        r"\x61",
        r"\u00e9",
    ]
)
_LOOKS = st.sampled_from(
    [r"\b", r"\B", "^", r"\Z", "(?=a)", "(?!b)", "(?<=1)", "(?<!a)", r"(?!\w)", r"(?<![^a])", "(?=[^a1])"]
)


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeated = st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}"]))
    return st.one_of(
        st.lists(st.one_of(inner, inner, inner, _LOOKS), min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        repeated.map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


regexes = st.recursive(_ATOMS, _grow, max_leaves=6)
# Matches of few characters.
short_regexes = st.recursive(_ATOMS, _grow, max_leaves=3).filter(
    lambda regex: not any(part in regex for part in ("é", "{", "\\u"))
)
texts = st.text(ALPHABET, max_size=14)
