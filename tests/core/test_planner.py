"""C1-C5: how a step's tokens are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi._core import parts

from .harness import Executor, ModelSpec

demands = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), max_size=6)


@given(demands, st.integers(0, 100), st.integers(1, 8), st.integers(0, 40))
def test_a_budget_is_split_evenly_aligned_and_to_the_last_token(
    prefills: list[tuple[int, int]], budget: int, block: int, slack: int
) -> None:
    cap = block + slack
    chunks = parts.split_budget(prefills, budget, block, cap)
    assert len(chunks) == len(prefills)
    spent = sum(chunks)
    assert spent <= budget, "C1"
    share = min(cap, max(block, budget // max(len(prefills), 1)))
    left = budget
    for (start, remaining), chunk in zip(prefills, chunks, strict=True):
        assert 0 <= chunk <= min(remaining, cap)
        wanted = remaining if remaining <= share else (start + share) // block * block - start
        assert chunk >= min(wanted, left), "everyone gets a share before anyone gets more"
        left -= min(wanted, left)
    unaligned = [
        i
        for i, ((start, remaining), c) in enumerate(zip(prefills, chunks, strict=True))
        if 0 < c < remaining and (start + c) % block
    ]
    assert len(unaligned) <= 1, "C3: the budget ends inside one block at most"
    if unaligned:
        assert spent == budget
    if spent < budget:
        for (start, remaining), chunk in zip(prefills, chunks, strict=True):
            most = remaining if remaining <= cap else (start + cap) // block * block - start
            assert chunk == most, "C4: what is left goes to whoever can take more"


@pytest.mark.parametrize(("budget", "block", "cap"), [(8, 0, 4), (8, 4, 3), (-1, 4, 4)])
def test_a_budget_that_cannot_be_split_is_refused(budget: int, block: int, cap: int) -> None:
    with pytest.raises(ValueError, match=f"got {block}, {cap} and {budget}"):
        parts.split_budget([(0, 8)], budget, block, cap)


def test_decodes_never_wait_for_prefills() -> None:
    """C2: while long prompts are computed chunk by chunk, every running decode gets a token in every step."""
    ex = Executor(
        [ModelSpec(blocks=200, block_size=4, max_model_len=300, max_batch_tokens=8, max_num_seqs=6)]
    )
    chatting = [ex.accepted([i + 1] * 3, max_new=60) for i in range(3)]
    for _ in range(2):
        ex.step()
    ex.accepted([9] * 200, max_new=2)
    ex.accepted([8] * 100, max_new=2)
    for _ in range(40):
        step = ex.step()
        assert step is not None
        decoding = {r.request for r in step.rows[: step.info.num_decodes]}
        assert decoding >= {c for c in chatting if c not in ex.finished or len(ex.outputs[c]) == 60}
        assert step.info.num_tokens == 8
    ex.run()


def test_decodes_that_fill_the_budget_keep_newcomers_out_and_all_run() -> None:
    ex = Executor([ModelSpec(max_batch_tokens=3, max_num_seqs=6)])
    for i in range(6):
        ex.accepted([i + 1], max_new=8)
    ex.run()
    assert [s.info.num_decodes for s in ex.steps[1:8]] == [3] * 7
    assert max(s.info.num_tokens for s in ex.steps) == 3
    assert len(ex.finished) == 6


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 16])
def test_a_step_with_a_runnable_request_computes_at_least_one_token(
    block_size: int, max_batch_tokens: int
) -> None:
    """C5 at the smallest limits there are: one slot, one token, blocks for one request."""
    ex = Executor(
        [ModelSpec(blocks=-(-40 // block_size), block_size=block_size, max_model_len=40, max_num_seqs=1,
                   max_batch_tokens=max_batch_tokens, max_prefill_chunk=block_size)]
    )  # fmt: skip
    for i in range(3):
        ex.accepted([i + 1] * 35, max_new=5)
    while ex.runtime.has_work():
        step = ex.step()
        assert step is not None
        assert step.info.num_tokens >= 1
    assert len(ex.finished) == 3


def test_the_smallest_delta_buffer_still_lets_every_request_through() -> None:
    """Long hits for many requests at once exceed the deltas of one step; they are admitted over several."""
    spec = ModelSpec(blocks=400, block_size=1, max_model_len=60, max_num_seqs=30, max_batch_tokens=64)
    ex = Executor([spec])
    prompt = list(range(1, 55))
    ex.accepted(prompt, max_new=1)
    ex.run()
    for _ in range(30):
        ex.accepted([*prompt, 77], max_new=2)
    ex.run()
    assert len(ex.finished) == 31
    deltas = ex.specs[0].build().max_deltas
    assert max(s.info.num_deltas for s in ex.steps) <= deltas
    assert sum(1 for s in ex.steps if any(r.first for r in s.rows)) > 2


def test_a_lone_long_prefill_leaves_shares_to_those_admitted_after_it() -> None:
    spec = ModelSpec(blocks=200, block_size=4, max_model_len=300, max_batch_tokens=16, max_num_seqs=4,
                     max_prefill_chunk=12)  # fmt: skip
    ex = Executor([spec])
    long = ex.accepted([1] * 100, max_new=1)
    short = ex.accepted([2] * 8, max_new=1)
    step = ex.step()
    assert step is not None
    assert [(r.request, r.count) for r in step.rows] == [(long, 12), (short, 4)]
    step = ex.step()
    assert step is not None
    assert [(r.request, r.count) for r in step.rows] == [(long, 12), (short, 4)]
    assert short in ex.finished


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 40))
def test_whole_prompts_are_computed_in_one_step_each_in_their_order(lengths: list[int], more: int) -> None:
    spec = ModelSpec.whole(blocks=16, max_model_len=31, more_tokens=more, max_num_seqs=4)
    ex = Executor([spec])
    requests = [ex.accepted([1] * length, max_new=1) for length in lengths]
    begun: list[int] = []
    while len(begun) < len(requests):
        step = ex.step()
        assert step is not None, "something waits, and nothing runs"
        rows = step.rows
        assert [row.count for row in rows] == [lengths[requests.index(row.request)] for row in rows]
        begun += [row.request for row in rows]
        if len(begun) < len(requests) and len(rows) < spec.max_num_seqs:
            following = lengths[len(begun)]
            assert sum(row.count for row in rows) + following > spec.max_batch_tokens, (
                "it had room for one more"
            )
    assert begun == requests
    assert sorted(ex.finished) == requests


def test_whole_prompts_need_a_block_and_a_step_that_hold_the_longest() -> None:
    with pytest.raises(
        ValueError, match=r"block_size must be at least max_model_len where prompts are .* got 4"
    ):
        ModelSpec(whole_prompts=True).build()
    with pytest.raises(ValueError, match=r"max_batch_tokens must be at least max_model_len .* got 16"):
        ModelSpec(whole_prompts=True, block_size=64).build()
    with pytest.raises(ValueError, match="enable_prefix_caching must be 0 where prompts are computed whole"):
        ModelSpec(whole_prompts=True, block_size=64, max_batch_tokens=64).build()
