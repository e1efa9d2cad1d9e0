"""What can be done to a stream of requests."""

from __future__ import annotations

import numpy as np

from airi.simulate import Batch
from airi.simulate.batches import copied, joined, limited, repeated, sped_up, with_root_tenants
from tests.sim.samples import batch, random_batch


def halves(whole: Batch) -> list[Batch]:
    cut = len(whole) // 2
    return [whole.take(np.arange(cut)), whole.take(np.arange(cut, len(whole)))]


def prompts(found: Batch) -> list[tuple[int, list[int]]]:
    return [
        (int(n), found.parts[a:b].tolist())
        for n, a, b in zip(found.input_tokens, found.part_start[:-1], found.part_start[1:], strict=True)
    ]


def test_taking_rows_takes_their_parts() -> None:
    whole = random_batch(0, 50)
    order = np.random.default_rng(1).permutation(50)
    assert prompts(whole.take(order)) == [prompts(whole)[i] for i in order]


def test_joining_halves_gives_the_whole() -> None:
    whole = random_batch(1, 33)
    assert prompts(joined(halves(whole))) == prompts(whole)


def test_a_limit_ends_inside_a_batch() -> None:
    whole = random_batch(2, 30)
    found = joined(list(limited(lambda: halves(whole), 20)()))
    assert prompts(found) == prompts(whole)[:20]


def test_speed_divides_arrivals() -> None:
    found = joined(list(sped_up(lambda: [batch([0, 300, 1000], [1] * 3, [1] * 3)], 4.0)()))
    assert found.arrival_us.tolist() == [0, 75, 250]


def test_repeating_goes_on_after_a_mean_gap() -> None:
    found = joined(list(repeated(lambda: [batch([0, 300, 1000], [1] * 3, [1] * 3)], 3)()))
    assert found.arrival_us.tolist() == [0, 300, 1000, 1500, 1800, 2500, 3000, 3300, 4000]


def test_copies_fill_the_gaps_and_share_with_their_own_kind_only() -> None:
    whole = batch([0, 300, 1000], [64] * 3, [1] * 3, parts=[(1, 2), (), (1, 3)])
    found = joined(list(copied(lambda: halves(whole), 3)()))
    assert found.arrival_us.tolist() == [0, 100, 200, 300, 533, 766, 1000, 1000, 1000]
    parts = [ids for _, ids in prompts(found)]
    assert [ids[0] for ids in parts[:3]] == [ids[0] for ids in parts[6:]]
    assert len({ids[0] for ids in parts[:3]}) == 3
    assert parts[3:6] == [[], [], []]


def test_many_copies_come_a_few_at_a_time_and_with_ids_of_their_own() -> None:
    whole = batch([0, 10**6], [64] * 2, [1] * 2, parts=[(2**62 - 1,), (0,)])
    found = list(copied(lambda: [whole], 20_000)())
    assert [len(each) for each in found] == [20_000, 20_000]
    parts = joined(found).parts
    assert parts.min() >= 0
    assert len(np.unique(parts)) == 40_000


def test_root_tenants_come_from_the_first_part() -> None:
    whole = batch([0, 1, 2], [64] * 3, [1] * 3, tenant=[5, 5, 5], parts=[(18, 2), (), (3,)])
    found = joined(list(with_root_tenants(lambda: [whole], 16)()))
    assert found.tenant.tolist() == [2, 5, 3]
