"""KV events: who reads them all has the index's hashes; who reads too late is told, and starts from a snapshot."""

from __future__ import annotations

import random

import pytest

from airi import _core
from airi._core import Admission, KvEventKind, KvTier, parts

from .harness import Config, Executor, ModelSpec

Hash = tuple[int, int]


class Replica:
    """What a router keeps: the hashes of each model, and the parent of each."""

    def __init__(self) -> None:
        self.cursor = 0
        self.parents: dict[int, dict[Hash, Hash]] = {0: {}, 1: {}}

    def read(self, runtime: _core.Runtime) -> int:
        """Applies what is new; returns how many events were missed."""
        events, self.cursor, missed = runtime.read_kv_events(self.cursor, 50)
        if missed:
            return missed
        for event in events:
            assert event["tier"] == KvTier.DEVICE
            known = self.parents[int(event["model"])]
            if event["kind"] == KvEventKind.STORED:
                assert event["hash"].item() not in known, "stored twice"
                known[event["hash"].item()] = event["parent"].item()
            else:
                del known[event["hash"].item()]
                assert event["parent"].item() == (0, 0)
        return 0

    def resynchronise(self, runtime: _core.Runtime) -> None:
        for model in self.parents:
            self.parents[model], self.cursor = held(runtime, model)


def held(runtime: _core.Runtime, model: int) -> tuple[dict[Hash, Hash], int]:
    """What the model's index holds, and the cursor of the next event."""
    stored, cursor = runtime.kv_snapshot(model)
    parents = {e["hash"].item(): e["parent"].item() for e in stored}
    assert len(parents) == len(stored), "a hash is told twice"
    assert set(stored["model"].tolist()) <= {model}
    return parents, cursor


def traffic(seed: int, records: int) -> Executor:
    """Two models whose prompts share prefixes and collide with what was evicted."""
    rng = random.Random(seed)
    spec = ModelSpec(
        blocks=20, max_model_len=60, max_batch_tokens=24, block_size=rng.choice([2, 4]),
        admission=Admission.MAX_UTIL,
    )  # fmt: skip
    ex = Executor([spec, spec], Config(kv_event_records=records))
    for i in range(40):
        prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, 30))]
        salts = ((0, b"a"),) if rng.random() < 0.3 else ()
        ex.accepted(prompt, max_new=rng.randint(1, 10), model=i % 2, tenant=i % 3, salts=salts)
    return ex


@pytest.mark.parametrize("seed", range(8))
def test_replaying_the_events_gives_the_hashes_of_the_index_at_every_step(seed: int) -> None:
    ex = traffic(seed, 4096)
    replica = Replica()
    rng = random.Random(seed)
    while ex.runtime.has_work():
        planned = ex.plan()
        if planned is not None:
            failing = {r.request: int(_core.RowStatus.NAN) for r in planned.rows if rng.random() < 0.02}
            ex.commit(planned, status=failing)
        assert replica.read(ex.runtime) == 0
        assert replica.parents == {model: held(ex.runtime, model)[0] for model in (0, 1)}
    assert any(reason == _core.FinishReason.NAN for reason in ex.finished.values())
    assert ex.runtime.stats()[0].evictions > 0


@pytest.mark.parametrize("seed", range(4))
def test_who_was_overrun_is_told_and_goes_on_from_a_snapshot(seed: int) -> None:
    ex = traffic(seed, 4)
    replica = Replica()
    rng = random.Random(seed)
    overruns = 0
    while ex.runtime.has_work():
        ex.step()
        if rng.random() < 0.5:
            continue
        if replica.read(ex.runtime):
            overruns += 1
            replica.resynchronise(ex.runtime)
        assert replica.parents == {model: held(ex.runtime, model)[0] for model in (0, 1)}
    assert overruns > 0


def test_an_event_names_the_block_before_it_and_the_chain_starts_at_the_root() -> None:
    ex = Executor([ModelSpec(block_size=4)], Config(kv_event_records=64))
    prompt = list(range(1, 14))
    ex.accepted(prompt, max_new=1)
    ex.run()
    chain = parts.HashChain(bytes(range(16)), b"", 4)
    hashes = chain.hashes(prompt)
    events, cursor, missed = ex.runtime.read_kv_events(0)
    assert (cursor, missed) == (3, 0)
    assert events["hash"].tolist() == hashes
    assert events["parent"].tolist() == [chain.root, *hashes[:2]]
    assert events["num_tokens"].tolist() == [4, 4, 4]
    stored, _ = ex.runtime.kv_snapshot(0)
    assert stored.tolist() == events.tolist()


def test_nothing_is_kept_unless_asked_for() -> None:
    ex = Executor()
    ex.accepted(list(range(1, 14)))
    ex.run()
    assert ex.runtime.read_kv_events(0)[1:] == (0, 0)
    assert ex.runtime.read_decisions(0)[1:] == (0, 0)


def test_a_cursor_or_a_limit_that_cannot_be_is_refused() -> None:
    ex = Executor([ModelSpec()], Config(kv_event_records=8))
    with pytest.raises(ValueError, match="cursor must be at most 0, the next record, got 1"):
        ex.runtime.read_kv_events(1)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        ex.runtime.read_kv_events(0, 0)
    with pytest.raises(ValueError, match="model must be a model of this runtime, got 1"):
        ex.runtime.kv_snapshot(1)
    with pytest.raises(ValueError, match=r"kv_event_records must be between 0 and 2\^24, got -1"):
        Executor([ModelSpec()], Config(kv_event_records=-1))
