"""The router of replicas through its binding, with engines' own events."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from airi import _core
from airi._core import Admission, parts, route
from tests.core.harness import Config, Executor, ModelSpec

BLOCK = 4
CHAIN = parts.HashChain(bytes(range(16)), b"", BLOCK)
TOKEN = ((0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0))
"""A microsecond a token."""
NOTHING = route.hash_chain(CHAIN, np.zeros(0, np.int32))


def chain_of(tokens: Sequence[int], salts: Sequence[tuple[int, bytes]] = ()) -> npt.NDArray[np.void]:
    return route.hash_chain(CHAIN, np.array(tokens, np.int32), salts)


def candidate(router: route.ReplicaRouter, replica: int, tokens: Sequence[int]) -> route.Candidate:
    choice = router.choose(chain_of(tokens), len(tokens), now_us=0)
    assert choice is not None
    return next(c for c in choice.candidates if c.replica == replica)


class Engine:
    """A runtime whose events reach a router, as its second model's."""

    def __init__(self, router: route.ReplicaRouter, records: int) -> None:
        spec = ModelSpec(
            blocks=20,
            max_model_len=60,
            max_batch_tokens=24,
            block_size=BLOCK,
            admission=Admission.MAX_UTIL,
        )
        self.executor = Executor([spec, spec], Config(kv_event_records=records))
        self.router = router
        self.replica = router.add(capacity_blocks=100, model=1, step_time=TOKEN)
        self.cursor = 0
        self.gaps = 0

    def tell(self) -> None:
        """What a reader of events does."""
        runtime = self.executor.runtime
        events, self.cursor, missed = runtime.read_kv_events(self.cursor)
        if missed:
            self.gaps += 1
            events, self.cursor = runtime.kv_snapshot(1)
            self.router.replace(self.replica, events)
        else:
            self.router.apply(self.replica, events)

    def held(self) -> set[Any]:
        return {event["hash"].item() for event in self.executor.runtime.kv_snapshot(1)[0]}


def test_the_chain_is_the_cores() -> None:
    tokens = list(range(1, 23))
    assert chain_of(tokens).tolist() == CHAIN.hashes(tokens)
    salts = [(5, b"a")]
    assert chain_of(tokens, salts).tolist() == CHAIN.hashes(tokens, [(parts.ExtraKind.SALT, 5, b"a")])
    assert chain_of(tokens, salts)[0] == chain_of(tokens)[0]
    assert chain_of(tokens, salts)[1] != chain_of(tokens)[1]


def test_a_prompt_goes_to_the_engine_that_has_its_beginning() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    engines = [Engine(router, 4096) for _ in range(3)]
    prompt = [random.Random(1).randint(1, 9) for _ in range(30)]
    engines[1].executor.accepted(prompt, max_new=2, model=1)
    engines[2].executor.accepted(prompt, max_new=2, model=0)
    for engine in engines:
        engine.executor.run()
        engine.tell()
    choice = router.choose(chain_of(prompt), len(prompt), now_us=0)
    assert choice is not None
    assert choice.replica == engines[1].replica
    assert [c.stored_tokens for c in choice.candidates] == [0, 28, 0]
    assert [c.prefill_us for c in choice.candidates] == [30, 2, 30]
    # Its last token is computed wherever it goes.
    assert candidate(router, engines[1].replica, prompt[:28]).stored_tokens == 24


@pytest.mark.parametrize("records", [4, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_the_router_has_what_engines_hold_at_every_step_and_after_gaps(seed: int, records: int) -> None:
    rng = random.Random(seed)
    router = route.ReplicaRouter(block_size=BLOCK)
    engines = [Engine(router, records) for _ in range(3)]
    prompts = [[rng.randint(1, 2) for _ in range(rng.randint(1, 30))] for _ in range(90)]
    for i, prompt in enumerate(prompts):
        engines[i % 3].executor.accepted(prompt, max_new=rng.randint(1, 10), model=rng.randint(0, 1))
    while any(engine.executor.runtime.has_work() for engine in engines):
        for engine in engines:
            engine.executor.step()
            if rng.random() < 0.5:
                continue
            engine.tell()
            held = engine.held()
            assert router.num_stored(engine.replica) == len(held)
            prompt = rng.choice(prompts)
            known = [h in held for h in CHAIN.hashes(prompt)[: (len(prompt) - 1) // BLOCK]]
            matched = next((i for i, is_held in enumerate(known) if not is_held), len(known))
            assert candidate(router, engine.replica, prompt).stored_tokens == matched * BLOCK
        router.check_invariants()
    assert all((engine.gaps > 0) == (records == 4) for engine in engines)
    for engine in engines:
        router.remove(engine.replica)
    assert router.choose(NOTHING, 1, now_us=0) is None


def test_outstanding_work_is_what_was_sent_and_has_not_ended() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    first, second = (router.add(capacity_blocks=100, step_time=TOKEN) for _ in range(2))
    prompt = list(range(40))
    router.sent(7, first, chain_of(prompt), 40, now_us=0)
    found = candidate(router, first, prompt)
    assert (found.outstanding_requests, found.outstanding_tokens, found.wait_us) == (1, 40, 40)
    assert (found.stored_tokens, found.cached_tokens, found.prefill_us) == (0, 36, 4)
    assert found.ttft_us == found.wake_us + found.wait_us + found.prefill_us
    assert found.score_us == found.ttft_us + found.delay_us
    assert router.first_token(7)
    assert candidate(router, first, prompt).outstanding_tokens == 0
    assert router.ended(7, 5)
    assert not router.ended(7, 5)
    assert candidate(router, first, prompt).outstanding_requests == 0
    router.count(second, waiting=2, running=3)
    assert candidate(router, second, prompt).outstanding_requests == 5
    assert candidate(router, second, prompt).last_sent == 0


def test_what_sleeps_pays_for_waking_and_what_drains_is_not_chosen() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    first, second = (router.add(capacity_blocks=100, step_time=TOKEN) for _ in range(2))
    router.sleep(first, 500)
    choice = router.choose(NOTHING, 3, now_us=0)
    assert choice is not None
    assert choice.replica == second
    assert [c.wake_us for c in choice.candidates] == [500, 0]
    router.wake(first)
    router.drain(second)
    choice = router.choose(NOTHING, 3, now_us=0)
    assert choice is not None
    assert [c.replica for c in choice.candidates] == [choice.replica] == [first]


def test_a_replica_without_a_learnt_step_time_still_prefers_less_to_compute() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    replicas = [router.add(capacity_blocks=100) for _ in range(3)]
    prompt = list(range(40))
    router.sent(1, replicas[2], chain_of(prompt), 40, now_us=0)
    router.first_token(1)
    router.ended(1, 1)
    choice = router.choose(chain_of(prompt), 40, now_us=1)
    assert choice is not None
    assert choice.replica == replicas[2]
    router.set_step_time(replicas[2], ((0, 1000, 0, 0, 0), (0, 1000, 0, 0, 0)), max_batch_tokens=64)
    choice = router.choose(chain_of(prompt), 40, now_us=2)
    assert choice is not None
    assert choice.replica != replicas[2]


def test_mistakes_are_one_line_that_names_them() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    replica = router.add(capacity_blocks=1)
    chain = chain_of(range(8))
    with pytest.raises(ValueError, match=r"^there is no replica 5$"):
        router.drain(5)
    with pytest.raises(ValueError, match=r"^chain must be no longer than input_tokens, got 2 blocks$"):
        router.choose(chain, 7, now_us=0)
    with pytest.raises(ValueError, match=r"^input_tokens must be at least 1, got 0$"):
        router.choose(NOTHING, 0, now_us=0)
    router.sent(3, replica, chain, 8, now_us=0)
    with pytest.raises(ValueError, match=r"^request 3 is outstanding already$"):
        router.sent(3, replica, chain, 8, now_us=0)
    with pytest.raises(ValueError, match=r"^step_time must be finite and at least 0, got -1"):
        router.add(capacity_blocks=1, step_time=((0, -1, 0, 0, 0), (0, 0, 0, 0, 0)))
    with pytest.raises(ValueError, match=r"^capacity_blocks must be at least 0, got -1$"):
        router.add(capacity_blocks=-1)
    with pytest.raises(ValueError, match=r"^load_guard must be between 1 and 1e9, got 0.5"):
        route.ReplicaRouter(block_size=BLOCK, load_guard=0.5)
    with pytest.raises(TypeError, match=r"^chain must be a C-contiguous .* array, got int64 \[2\]$"):
        router.choose(np.array([77, 78]), 8, now_us=0)
    with pytest.raises(TypeError, match=r"^events must be"):
        router.apply(replica, np.zeros(2, [("hash", "u8")]))
    for _ in range(route.MAX_REPLICAS - 1):
        router.add(capacity_blocks=1)
    with pytest.raises(ValueError, match=r"^a router has 64 replicas at most$"):
        router.add(capacity_blocks=1)


def test_what_does_not_fit_the_capacity_is_left_out() -> None:
    router = route.ReplicaRouter(block_size=BLOCK)
    replica = router.add(capacity_blocks=2)
    ring = parts.KvEventRing(8)
    events = np.zeros(3, ring.read(0)[0].dtype)
    events["hash"] = chain_of(range(12))
    events["kind"] = _core.KvEventKind.STORED
    router.apply(replica, events)
    assert (router.num_stored(replica), router.num_left_out(replica)) == (2, 1)
    assert candidate(router, replica, range(13)).stored_tokens == 8
    assert router.memory_bytes > 0
