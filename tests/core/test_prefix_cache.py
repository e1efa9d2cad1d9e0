"""H3, H5, H6, B5-B7: what prefixes are shared, with whom, and for how long."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi import _core

from .harness import Executor, ModelSpec

Salts = tuple[tuple[int, bytes], ...]


def cached(ex: Executor, tokens: list[int], *, max_new: int = 1, salts: Salts = ()) -> int:
    """Runs one request alone; returns how many of its prompt tokens it hit."""
    request = ex.accepted(tokens, max_new=max_new, salts=salts)
    ex.run()
    return int(ex.events[request]["num_cached_tokens"])


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=60)
def test_a_hit_covers_full_blocks_and_leaves_a_token_to_compute(length: int, block: int, more: int) -> None:
    """H3, H5: floor((len - 1) / B) * B, of what was computed: the last sampled token has no KV yet."""
    ex = Executor([ModelSpec(blocks=200, block_size=block, max_model_len=100, max_batch_tokens=64)])
    prompt = list(range(1, length + 1))
    first = ex.accepted(prompt, max_new=more)
    ex.run()
    computed = length + more - 1
    again = ex.texts[first]
    assert cached(ex, again) == min((len(again) - 1) // block, computed // block) * block
    assert cached(ex, prompt) == (length - 1) // block * block


def test_a_partial_tail_is_never_shared() -> None:
    ex = Executor([ModelSpec(block_size=8, max_batch_tokens=32)])
    cached(ex, [1] * 7)
    assert cached(ex, [1] * 7) == 0
    assert cached(ex, [1] * 9) == 0
    assert cached(ex, [1] * 10) == 8


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from([b"a", b"b", b""])), max_size=2), st.data())
@settings(max_examples=100)
def test_blocks_under_a_salt_go_only_to_requests_with_that_salt_there(
    mine: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """H6: what two requests share ends with the block in which their salts first differ."""
    theirs = data.draw(
        st.one_of(st.just(mine), st.lists(st.sampled_from([(0, b"a"), (5, b"a"), (5, b"b")]), max_size=2))
    )
    ex = Executor([ModelSpec(block_size=4, max_batch_tokens=64)])
    prompt = list(range(1, 23))
    cached(ex, prompt, salts=tuple(mine))
    starts = [
        i for i in range(6) if [s for s in mine if s[0] // 4 == i] != [s for s in theirs if s[0] // 4 == i]
    ]
    shared = min([*starts, 5])
    assert cached(ex, prompt, salts=tuple(theirs)) == 4 * shared


def test_the_public_part_before_a_private_salt_is_shared_by_everyone() -> None:
    ex = Executor([ModelSpec(block_size=4, max_batch_tokens=64)])
    system, alice, bob = list(range(1, 13)), [50] * 8, [60] * 8
    cached(ex, system + alice, salts=((12, b"alice"),))
    assert cached(ex, system + bob, salts=((12, b"bob"),)) == 12
    assert cached(ex, system + alice, salts=((12, b"mallory"),)) == 12
    assert cached(ex, [*system, *alice, 1], salts=((12, b"alice"),)) == 20


def test_caching_can_be_switched_off() -> None:
    ex = Executor([ModelSpec(prefix_caching=False)])
    assert [cached(ex, [1] * 12) for _ in range(2)] == [0, 0]
    assert ex.runtime.stats()[0].cached_blocks == 0


def test_a_hit_renews_the_chain_and_the_oldest_chain_goes_first() -> None:
    """B5, B6 through the runtime: 12 blocks, three chains of three."""
    ex = Executor([ModelSpec(blocks=12, block_size=4, max_batch_tokens=64)])
    old, middle, new = ([t] * 12 for t in (1, 2, 3))
    for prompt in (old, middle, new):
        cached(ex, [*prompt, 9])
    assert cached(ex, [*old, 9]) == 12
    cached(ex, [4] * 20, max_new=4)
    assert cached(ex, [*old, 9]) == 12, "the chain just hit survived"
    assert cached(ex, [*middle, 9]) < 12, "the oldest was evicted, from its end"


def test_contents_of_a_request_that_ended_in_nan_are_not_served_to_anyone() -> None:
    """Its blocks may hold NaN. What it had hit, and blocks that others hold, stay usable."""
    ex = Executor([ModelSpec(block_size=4, max_batch_tokens=64)])
    cached(ex, [1] * 8)
    bad = ex.accepted([1] * 8 + [2] * 9, max_new=4)
    step = ex.plan()
    assert step is not None
    assert step.rows[0].start == 8
    ex.commit(step, status={bad: _core.RowStatus.NAN})
    assert ex.finished[bad] == _core.FinishReason.NAN
    assert cached(ex, [1] * 8 + [2] * 9) == 8
    assert cached(ex, [1] * 8 + [2] * 9) == 16


@pytest.mark.parametrize("status", [_core.RowStatus.NAN, _core.RowStatus.FAILED])
def test_contents_published_before_the_failure_are_forgotten_too(status: _core.RowStatus) -> None:
    ex = Executor([ModelSpec(block_size=4, max_batch_tokens=8)])
    bad = ex.accepted([2] * 20, max_new=4)
    ex.step()
    ex.step()
    step = ex.plan()
    assert step is not None
    assert step.rows[0].start == 16, "four blocks were published"
    ex.commit(step, status={bad: status})
    assert cached(ex, [2] * 20) == 0
    assert cached(ex, [2] * 20) == 16, "what a sound request computed is served again"


def test_a_request_that_holds_distrusted_blocks_goes_on_and_nobody_finds_what_it_adds_to_them() -> None:
    ex = Executor([ModelSpec(block_size=4, max_batch_tokens=8, max_num_seqs=2)])
    bad = ex.accepted([2] * 22, max_new=4)
    ex.step()
    ex.step()
    follower = ex.accepted([2] * 20, max_new=6)
    step = ex.plan()
    assert step is not None
    assert {r.request: r.start for r in step.rows} == {bad: 16, follower: 16}
    ex.commit(step, status={bad: _core.RowStatus.NAN})
    ex.run()
    ex.runtime.check_invariants()
    assert ex.finished[follower] == _core.FinishReason.LENGTH
    assert cached(ex, [2] * 20) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_block_is_written_by_one_request_at_a_time_and_never_while_it_is_shared(seed: int) -> None:
    """B4 from outside: stamps on every token's place in the arena are those of the text that reads it."""
    rng = random.Random(seed)
    spec = ModelSpec(blocks=24, block_size=4, max_model_len=64, max_num_seqs=6, max_batch_tokens=20,
                     admission=_core.Admission.MAX_UTIL)  # fmt: skip
    ex = Executor([spec])
    arena: dict[tuple[int, int], tuple[int, ...]] = {}
    for tick in range(400):
        if rng.random() < 0.3:
            ex.accepted([1] * rng.randint(0, 10) + [rng.randint(1, 2) for _ in range(rng.randint(1, 20))],
                        max_new=rng.randint(1, 20))  # fmt: skip
        if tick % 37 == 5 and ex.texts:
            ex.runtime.cancel(rng.choice(sorted(ex.texts)))
        step = ex.plan()
        if step is None:
            continue
        for row in step.rows:
            table = ex.tables[0][row.slot]
            text = ex.texts[row.request]
            for at in range(row.start, row.start + row.count):
                arena[table[at // 4], at % 4] = tuple(text[: at + 1])
        for row in step.rows:
            table = ex.tables[0][row.slot]
            text = ex.texts[row.request]
            for at in range(row.start + row.count):
                assert arena[table[at // 4], at % 4] == tuple(text[: at + 1]), (
                    "a block was overwritten in use"
                )
        ex.commit(step)
    ex.run()
