"""Who gets the candidate: evenly many, always the same, and with a growing weight nobody goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airi.lifecycle.draw import Split, bucket


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_nobody_goes_back(salt: str, key: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    before = Split(stable="s", candidate="c", weight=less, salt=salt).draw(key)
    after = Split(stable="s", candidate="c", weight=more, salt=salt).draw(key)
    assert (before, after) != ("c", "s")
    assert Split(stable="s", candidate="c", weight=100, salt=salt).draw(key) == "c"
    assert Split(stable="s", candidate="c", salt=salt).draw(key) == "s"
    assert Split(stable="s", weight=50, salt=salt).draw(key) == "s"


def test_the_draw_is_even_and_of_its_rollout() -> None:
    keys = [f"session-{i}" for i in range(20_000)]
    for weight in (1, 5, 50, 95):
        split = Split(stable="s", candidate="c", weight=weight, salt="r1")
        share = sum(split.draw(key) == "c" for key in keys) / len(keys)
        assert abs(share - weight / 100) < 4 * (weight / 100 * (1 - weight / 100) / len(keys)) ** 0.5
    first = {key for key in keys if bucket("r1", key) < 0.1}
    again = {key for key in keys if bucket("r2", key) < 0.1}
    assert 0.05 < len(first & again) / len(first) < 0.15
