"""What patterns are accepted, what is refused and how that is said."""

from __future__ import annotations

import pytest

from airi._core import guard


def build(text: str, *, max_states: int = 1 << 15, **options: object) -> guard.Automaton:
    return guard.Automaton([guard.Pattern(text, name="p", **options)], max_states=max_states)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "character", "what"),
    [
        ("ab(c", 3, r"this \( is never closed"),
        ("ab)c", 3, r"this \) closes no group"),
        ("a[bc", 2, r"this \[ is never closed"),
        ("a[z-b]", 3, "this range runs backwards"),
        ("*a", 1, "there is nothing to repeat"),
        ("a{2,1}", 2, "the largest count is below the smallest"),
        ("a{1001}", 3, "counts go up to 1000"),
        ("a{x}", 2, "a { that begins no count must be escaped"),
        ("a{,}", 2, "a { that begins no count must be escaped"),
        ("ab*?", 4, "a repetition cannot be lazy"),
        ("ab*+", 4, "possessive"),
        ("ab**", 4, "a repetition cannot be repeated"),
        (r"(a)\1", 4, "references to groups"),
        (r"a\p", 2, "this escape is not supported"),
        (r"a\x1", 2, "takes 2 hexadecimal digits"),
        (r"\U00110000", 1, "there is no such character"),
        ("a\\", 2, "escapes nothing"),
        ("(?P<n>a)", 2, "of groups only"),
        (r"a\b+", 4, "an assertion cannot be repeated"),
        ("(?=ab)a", 4, "a single character"),
        ("(?=(a))a", 4, "a single character"),
        ("(?<!é)a", 5, "treat all characters beyond ASCII alike"),
        ("[[:alpha:]]", 2, "classes by name"),
        (r"[^\s\S]", 1, "this class has no character"),
        ("é(", 2, "never closed"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_character_it_stands_at(
    text: str, character: int, what: str
) -> None:
    with pytest.raises(ValueError, match=f"^pattern 'p', character {character}: .*{what}[^\n]*$"):
        build(text)


@pytest.mark.parametrize("text", ["", "a*", r"\b", "(?:a|)", "a{0}", "^"])
def test_a_pattern_that_matches_the_empty_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern 'p' matches the empty text$"):
        build(text)


@pytest.mark.parametrize("text", [r"a\bb", "a^b", r"\Za", "(?=b)a", "(?<=x)(?<!x)a"])
def test_a_pattern_that_no_text_matches_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern 'p' matches no text$"):
        build(text)


def test_the_refusal_of_too_many_states_names_pattern_and_number() -> None:
    with pytest.raises(ValueError, match=r"^pattern 'p' takes more than 1000 states$"):
        build("[ab]*a[ab]{12}", max_states=1000)
    with pytest.raises(ValueError, match=r"^pattern 'p' takes more than 1000 positions"):
        build("(?:a{100}){100}", max_states=1000)
    assert build("[ab]*a[ab]{6}", max_states=1000).num_states < 1000


def test_patterns_that_would_multiply_are_kept_apart() -> None:
    texts = [f"[a-z]*{c}[a-z]*{d}[a-z]*0" for c, d in ("ab", "cd", "ef", "gh", "ij", "kl")]
    patterns = [guard.Pattern(text, name=text) for text in texts]
    machine = guard.Automaton(patterns, max_states=200)
    assert 1 < machine.num_groups <= 6
    together = guard.Automaton(patterns)
    assert together.num_groups == 1
    assert together.num_states > machine.num_states
    text = b"xxaxxbxx0 cccdd0 ab0 fe0 lkjihgfedcba0 abcdefghijkl0"
    assert sorted(machine.scan(text)) == sorted(together.scan(text))
    with pytest.raises(ValueError, match=r"the patterns take more than 1 groups of 200 states"):
        guard.Automaton(patterns, max_states=200, max_groups=1)


def test_a_validator_wants_matches_of_a_largest_length() -> None:
    with pytest.raises(ValueError, match=r"^pattern 'p' has a validator"):
        build(r"\d+", validator=guard.Validator.LUHN)


def test_a_regular_expression_is_no_bytes() -> None:
    with pytest.raises(ValueError, match="only a literal may be bytes"):
        guard.Pattern(b"a", name="p")


def test_no_pattern_is_no_automaton() -> None:
    with pytest.raises(ValueError, match="at least one pattern"):
        guard.Automaton([])


def test_an_error_never_shows_the_pattern() -> None:
    with pytest.raises(ValueError, match="character") as caught:
        build("geheim(")
    assert "geheim" not in str(caught.value)


def test_the_canonical_form_is_of_what_is_matched() -> None:
    assert build("ab|ac").canonical() == build("ab|ac").canonical()
    assert build("ab|ac").canonical() != build("ab|ad").canonical()
