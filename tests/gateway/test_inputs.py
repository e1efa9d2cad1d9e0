"""Parts of a message: which matches are of more than one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airi.gateway.openai.inputs import _spans
from airi.policy.content import ContentAction, ContentEvent


@given(
    ends=st.lists(st.integers(0, 12), max_size=6).map(sorted),
    start=st.integers(0, 12),
    size=st.integers(1, 12),
)
def test_a_match_spans_parts_where_one_ends_within_it(ends: list[int], start: int, size: int) -> None:
    event = ContentEvent(rule="r", pattern="p", action=ContentAction.BLOCK, start=start, end=start + size)
    assert _spans(event, ends) == any(start < end < start + size for end in ends)
