"""X1-X3: a prefix that several requests bring at once is computed once, where that pays."""

from __future__ import annotations

import random

import pytest

from .harness import Config, Executor, ModelSpec, Step
from .pipeline import Pipeline
from .twin import Twin, random_config, random_sharing_spec

PREFIX = list(range(100, 132))  # eight blocks of 4


def per_token(step: Step) -> int:
    """A device that takes its time for each token."""
    return 5 + 10 * step.info.num_tokens


def first_steps(ex: Executor) -> dict[int, int]:
    """By request: the step that it first ran in."""
    found: dict[int, int] = {}
    for i, step in enumerate(ex.steps):
        for row in step.rows:
            found.setdefault(row.request, i)
    return found


def computed(ex: Executor, request: int) -> int:
    return sum(row.count for step in ex.steps for row in step.rows if row.request == request)


def step(ex: Executor, **kwargs: dict[int, int]) -> Step:
    planned = ex.plan()
    assert planned is not None
    ex.commit(planned, device_us=per_token(planned), **kwargs)
    return planned


def finish(ex: Executor) -> None:
    while ex.runtime.has_work():
        step(ex)


def trained(spec: ModelSpec, config: Config) -> Executor:
    """A runtime that has seen what steps of some sizes take."""
    ex = Executor([spec], config)
    for i in range(30):
        ex.accepted([1000 + 50 * i + k for k in range(1 + i % 15)], max_new=1 + i % 4)
    finish(ex)
    ex.steps.clear()
    return ex


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_choices_of_one_prompt_prefill_it_once(steps_ahead: int) -> None:
    """The shared prefix fits one step: the others wait for it, and compute the rest alone."""
    spec = ModelSpec(blocks=128, max_batch_tokens=64)
    ex = Executor([spec], Config(dedupe_steps=10, steps_ahead=steps_ahead))
    choices = [ex.accepted([*PREFIX, 7], max_new=3) for _ in range(4)]
    ex.run()
    assert [int(ex.events[r]["num_cached_tokens"]) for r in choices] == [0, 32, 32, 32]
    assert ex.runtime.stats()[0].dedupe_holds == 3
    assert len({tuple(ex.outputs[r]) for r in choices}) == 1


def test_who_comes_while_the_last_chunk_is_in_flight_waits_for_its_commit() -> None:
    """One step ahead, a prefix is computed before it is indexed: its request decodes by then."""
    ex = Pipeline([ModelSpec(blocks=128, max_batch_tokens=64)], Config(dedupe_steps=10))
    ex.accepted([*PREFIX, 7], max_new=9)
    ex.step()
    assert len(ex.in_flight) == 1, "all of the prompt, and its first token"
    late = ex.accepted([*PREFIX, 8], max_new=3)
    ex.run()
    assert ex.runtime.stats()[0].dedupe_holds == 1
    assert ex.events[late]["num_cached_tokens"] == 32


def test_without_dedupe_each_computes_the_prefix() -> None:
    ex = Executor([ModelSpec(blocks=128, max_batch_tokens=256)])
    choices = [ex.accepted([*PREFIX, 7], max_new=3) for _ in range(4)]
    ex.run()
    assert [int(ex.events[r]["num_cached_tokens"]) for r in choices] == [0, 0, 0, 0]
    assert ex.runtime.stats()[0].dedupe_holds == 0


@pytest.mark.parametrize("most", [1, 2, 3, 20])
def test_a_request_is_held_for_at_most_so_many_steps(most: int) -> None:
    """X1: the producer needs eight steps for the prefix."""
    ex = trained(ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=4), Config(dedupe_steps=most))
    producer = ex.accepted([*PREFIX, 7], max_new=3)
    held = ex.accepted([*PREFIX, 8], max_new=3)
    stranger = ex.accepted(list(range(8)), max_new=3)
    finish(ex)
    first = first_steps(ex)
    assert first[producer] == first[stranger] == 0, "what stands behind a held request is not blocked"
    assert first[held] == min(most, 8)
    assert int(ex.events[held]["num_cached_tokens"]) == 4 * min(most, 8)


def test_the_steps_of_a_request_are_counted_over_all_its_holds() -> None:
    """X1: it waits for one producer, which is cancelled, and then for another."""
    ex = trained(ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=4), Config(dedupe_steps=3))
    producers = [ex.accepted([*PREFIX, i], max_new=3, compute_all=True) for i in range(2)]
    held = ex.accepted([*PREFIX, 9], max_new=3)
    for i in range(5):
        step(ex)
        if i == 1:
            assert held not in first_steps(ex)
            ex.runtime.cancel(producers[0])
    assert first_steps(ex)[held] == 3
    finish(ex)


def test_nobody_is_held_where_steps_take_long_whatever_is_in_them() -> None:
    """X2: computing the prefix again adds nothing to a step, waiting costs a whole one."""
    ex = Executor([ModelSpec(blocks=128, max_batch_tokens=128)], Config(dedupe_steps=10))
    for i in range(20):
        ex.accepted([1000 + 50 * i + k for k in range(1 + i % 15)], max_new=1 + i % 4)
    ex.run()
    choices = [ex.accepted([*PREFIX, 7], max_new=3) for _ in range(2)]
    ex.run()
    assert ex.runtime.stats()[0].dedupe_holds == 0
    first = first_steps(ex)
    assert first[choices[0]] == first[choices[1]]


def test_requests_are_held_where_tokens_take_the_time() -> None:
    """X2, the other way round, with a model of steps that has learnt."""
    ex = trained(ModelSpec(blocks=128, max_batch_tokens=64), Config(dedupe_steps=10))
    choices = [ex.accepted([*PREFIX, 7], max_new=3) for _ in range(3)]
    finish(ex)
    assert [computed(ex, r) for r in choices] == [33 + 2, 1 + 2, 1 + 2]


@pytest.mark.parametrize("ends", ["cancel", "fail", "deadline"])
def test_a_producer_that_ends_lets_go_in_the_same_step(ends: str) -> None:
    """X3."""
    spec = ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=4)
    ex = trained(spec, Config(dedupe_steps=100))
    soon = ex.now + 200
    producer = ex.accepted([*PREFIX, 7], max_new=3, deadline=soon if ends == "deadline" else None)
    held = ex.accepted([*PREFIX, 8], max_new=3)
    step(ex)
    step(ex)
    assert held not in first_steps(ex)
    if ends == "cancel":
        ex.runtime.cancel(producer)
    elif ends == "deadline":
        ex.now = soon
    else:
        step(ex, status={producer: 2})
    assert held in {row.request for row in step(ex).rows}
    finish(ex)


def test_a_producer_that_is_preempted_lets_go_in_the_same_step() -> None:
    """X3: a request of a more urgent class takes the only two slots."""
    spec = ModelSpec(blocks=16, max_batch_tokens=64, max_prefill_chunk=4, max_num_seqs=2, max_model_len=64)
    ex = trained(spec, Config(dedupe_steps=100, num_bands=2))
    producer = ex.accepted([*PREFIX, 7], max_new=3, band=1)
    held = ex.accepted([*PREFIX, 8], max_new=3, band=1)
    step(ex)
    assert ex.runtime.stats()[0].waiting == 1
    ex.accepted(list(range(40)), max_new=4, band=0)
    step(ex)
    assert ex.runtime.stats()[0].preemptions == 1
    assert ex.runtime.stats()[0].waiting == 2
    ex.runtime.check_invariants()
    finish(ex)
    first = first_steps(ex)
    assert first[producer] < first[held]


def test_a_held_request_that_is_cancelled_is_gone() -> None:
    spec = ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=4)
    ex = trained(spec, Config(dedupe_steps=100))
    ex.accepted([*PREFIX, 7], max_new=3)
    held = ex.accepted([*PREFIX, 8], max_new=3)
    step(ex)
    ex.runtime.cancel(held)
    finish(ex)
    assert held in ex.finished
    assert held not in first_steps(ex)
    assert ex.runtime.stats()[0].active_blocks == 0


def run_random_families(seed: int) -> int:
    """A random trace of prompts that share much, on a device that takes its time per token; holds in all."""
    rng = random.Random(seed)
    config = random_config(rng)
    config.dedupe_steps = rng.choice([1, 3, 20])
    twin = Twin([random_sharing_spec(rng)], config)
    families = [[rng.randint(0, 5) for _ in range(30)] for _ in range(3)]
    for _ in range(80):
        for _ in range(rng.choice([0, 0, 1, 3])):
            own = [rng.randint(0, 5) for _ in range(rng.randint(1, 4))]
            twin.submit(
                rng.choice(families)[: rng.randint(4, 30)] + own,
                model=0,
                tenant=rng.randint(0, 2),
                band=rng.randrange(config.num_bands),
                max_new=rng.randint(1, 8),
                min_new=0,
                stop=(),
                salts=(),
                deadline=None,
                arrival=twin.ex.now,
                compute_all=rng.random() < 0.1,
            )
        if rng.random() < 0.1 and twin.live:
            twin.cancel(rng.choice(sorted(twin.live)))
        twin.step(device_us=per_token)
    while twin.step(device_us=per_token) is not None:
        pass
    return sum(naive.dedupe.holds for naive in twin.naive)


def test_families_of_prompts_are_planned_as_the_naive_scheduler_plans_them() -> None:
    """X1 and liveness on each; and holds do occur."""
    assert sum(run_random_families(seed) for seed in range(12)) > 50


def test_no_more_are_held_than_there_are_slots() -> None:
    """The others wait in their places, and do not compute the prefix either."""
    spec = ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=4, max_num_seqs=6)
    ex = trained(spec, Config(dedupe_steps=100))
    choices = [ex.accepted([*PREFIX, 7], max_new=3) for _ in range(40)]
    for _ in range(4):
        assert {row.request for row in step(ex).rows} == {choices[0]}
        assert ex.runtime.stats()[0].dedupe_holds == 6
        assert ex.runtime.stats()[0].waiting == 39
    finish(ex)
    assert [computed(ex, r) for r in choices] == [33 + 2] + [1 + 2] * 39


def test_what_comes_back_stands_in_the_band_that_it_has_aged_to() -> None:
    """What is more urgent than its producer takes the memory; in that step only the first band is admitted."""
    spec = ModelSpec(blocks=24, max_batch_tokens=64, max_prefill_chunk=4, max_model_len=64)
    ex = trained(spec, Config(dedupe_steps=100, num_bands=2, aging_us=5000))
    producer = ex.accepted([*PREFIX, *range(200, 221)], max_new=3, band=1)
    held = ex.accepted([*PREFIX, 8], max_new=3, band=1)
    assert {row.request for row in step(ex).rows} == {producer}
    ex.now += 5000
    urgent = ex.accepted(list(range(300, 340)), max_new=4, band=0)
    assert {row.request for row in step(ex).rows} == {urgent, held}
    finish(ex)


@pytest.mark.parametrize("steps", [-1, 1 << 21])
def test_steps_that_cannot_be_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"dedupe_steps must be in \[0, 2\^20\]"):
        Executor(config=Config(dedupe_steps=steps))
