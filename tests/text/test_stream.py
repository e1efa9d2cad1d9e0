"""Text that is made while tokens arrive equals text that is made at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.text import TextStream, Tokenizer

if TYPE_CHECKING:
    from tests.text.conftest import Pair

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
CHUNKS = st.lists(
    st.one_of(
        st.text("ab cé—你🙂👩‍👩‍👧‍👦\n", max_size=6),
        st.sampled_from([" the", "the ", "  ", "return x", "<0x41>", "▁", "�", ""]),
    ),
    max_size=8,
)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=40)


def ids_of(tokenizer: Tokenizer, chunks: list[str], specials: list[int]) -> list[int]:
    """Whole characters only: each chunk is encoded by itself, special tokens stand between."""
    ids: list[int] = []
    for i, chunk in enumerate(chunks):
        ids += tokenizer.encode(chunk, add_special_tokens=False)
        if specials and i % 3 == 2:
            ids.append(specials[i % len(specials)])
    return ids


def in_pushes(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pushes, at = [], 0
    for i in range(len(ids)):
        if at >= len(ids):
            break
        size = sizes[i % len(sizes)]
        pushes.append(ids[at : at + size])
        at += size
    return pushes


def streamed(stream: TextStream, pushes: list[list[int]]) -> str:
    return "".join([stream.push(p) for p in pushes]) + stream.finish()


@shared
@given(prompt=CHUNKS, output=CHUNKS, sizes=SIZES, skip=st.booleans())
def test_deltas_add_up_to_the_decoded_continuation(
    pair: Pair, *, prompt: list[str], output: list[str], sizes: list[int], skip: bool
) -> None:
    tokenizer = pair.ours
    specials = sorted(tokenizer.special_ids)
    before, after = ids_of(tokenizer, prompt, specials), ids_of(tokenizer, output, specials)
    whole = pair.theirs.decode(before + after, skip_special_tokens=skip)
    head = pair.theirs.decode(before, skip_special_tokens=skip)
    stream = tokenizer.stream(before, skip_special_tokens=skip)
    assert head + streamed(stream, in_pushes(after, sizes)) == whole


@shared
@given(ids=st.lists(st.integers(0, 720), max_size=40), sizes=SIZES)
def test_any_token_ids_decode_as_byte_level_tokenizers_do(
    pairs: dict[str, Pair], ids: list[int], sizes: list[int]
) -> None:
    pair = pairs["byte-level"]
    assert streamed(pair.ours.stream(), in_pushes(ids, sizes)) == pair.theirs.decode(
        ids, skip_special_tokens=True
    )


@shared
@given(ids=st.lists(st.integers(0, 720), max_size=40), sizes=SIZES)
def test_text_does_not_depend_on_how_tokens_are_pushed(pair: Pair, ids: list[int], sizes: list[int]) -> None:
    one_by_one = streamed(pair.ours.stream(), [[i] for i in ids])
    assert streamed(pair.ours.stream(), in_pushes(ids, sizes)) == one_by_one


@shared
@given(text=st.text("aé你🙂", min_size=1, max_size=12))
def test_no_delta_holds_half_a_character(pair: Pair, text: str) -> None:
    stream = pair.ours.stream(pair.ours.encode("x"))
    deltas = [stream.push([i]) for i in pair.ours.encode(text, add_special_tokens=False)]
    assert "�" not in "".join(deltas)


def test_a_character_that_never_ends_becomes_a_replacement_character(pairs: dict[str, Pair]) -> None:
    for name in ("byte-level", "gemma"):
        tokenizer = pairs[name].ours
        ids = tokenizer.encode("🚁", add_special_tokens=False)[:-1]
        stream = tokenizer.stream(tokenizer.encode("x"))
        assert stream.push(ids) == ""
        assert set(stream.finish()) == {"�"}


def test_a_character_that_begins_in_the_prompt_is_completed(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["gemma"].ours
    ids = tokenizer.encode("🚁", add_special_tokens=False)
    assert tokenizer.stream(ids[:-2]).push(ids[-2:]) == "🚁"


def test_the_first_space_is_kept_after_a_prompt_and_lost_without_one(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["llama2"].ours
    ids = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.stream(tokenizer.encode("Item")).push(ids) == " the"
    assert tokenizer.stream([1]).push(ids) == "the"
    assert tokenizer.stream([1], skip_special_tokens=False).push(ids) == " the"


def test_wordpiece_is_decoded_through_a_window(pairs: dict[str, Pair]) -> None:
    pair = pairs["wordpiece"]
    ids = pair.ours.encode("the value of unbelievable expressions is here", add_special_tokens=False)
    whole = pair.theirs.decode(ids)
    for cut in range(len(ids)):
        head = pair.ours.decode(ids[:cut])
        assert head + streamed(pair.ours.stream(ids[:cut]), [[i] for i in ids[cut:]]) == whole


@shared
@given(output=CHUNKS, sizes=SIZES, stop=st.text("ab cé🙂", min_size=1, max_size=3), include=st.booleans())
def test_a_stop_string_cuts_the_text_and_counts_tokens_up_to_it(
    pair: Pair, *, output: list[str], sizes: list[int], stop: str, include: bool
) -> None:
    tokenizer = pair.ours
    ids = ids_of(tokenizer, output, [])
    prompt = tokenizer.encode("x")
    whole = streamed(tokenizer.stream(prompt), [ids])
    stream = tokenizer.stream(prompt, stop=[stop], include_stop=include)
    got = streamed(stream, in_pushes(ids, sizes))
    at = whole.find(stop)
    if at < 0:
        assert (got, stream.stopped, stream.num_tokens) == (whole, None, len(ids))
        return
    assert (got, stream.stopped) == (whole[: at + len(stop) if include else at], stop)
    needed = next(n for n in range(len(ids) + 1) if stop in streamed(tokenizer.stream(prompt), [ids[:n]]))
    assert stream.num_tokens == needed
    assert stream.num_characters == len(got)
    assert stream.push(ids) == stream.finish() == ""


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab")])
def test_a_stop_string_does_not_count_before_min_tokens(
    pairs: dict[str, Pair], min_tokens: int, text: str
) -> None:
    tokenizer = pairs["byte-level"].ours
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "abab"]
    stream = tokenizer.stream([], stop=["a"], min_tokens=min_tokens)
    assert stream.push(ids) + stream.finish() == text


@shared
@given(output=CHUNKS, sizes=SIZES)
def test_offsets_say_where_each_token_begins(pair: Pair, output: list[str], sizes: list[int]) -> None:
    tokenizer = pair.ours
    ids = ids_of(tokenizer, output, sorted(tokenizer.special_ids))
    stream = tokenizer.stream([], keep_offsets=True)
    text = streamed(stream, in_pushes(ids, sizes))
    assert stream.offsets == [len(tokenizer.stream().push(ids[:n])) for n in range(len(ids))]
    assert stream.num_visible_tokens == len(ids)
    assert all(0 <= o <= len(text) for o in stream.offsets)


def test_tokens_behind_a_stop_string_are_not_visible(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["byte-level"].ours
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "xy!?zz"]
    stream = tokenizer.stream([], stop=["!?"], keep_offsets=True)
    assert stream.push(ids) == "xy"
    assert (stream.num_tokens, stream.num_visible_tokens) == (4, 2)


@pytest.mark.parametrize("name", ["byte-level", "gemma", "llama2"])
def test_token_bytes_join_to_the_text(pairs: dict[str, Pair], name: str) -> None:
    tokenizer = pairs[name].ours
    ids = tokenizer.encode("naïve 🙂 text", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().lstrip(" ") == "naïve 🙂 text"
    assert tokenizer.token_text(min(tokenizer.special_ids)).startswith("<")
    assert tokenizer.token_bytes(10**6) == b""
