"""What gateways see of rollouts: it grows, it is added up, and a killed gateway loses what it had not written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from airi.errors import StateError
from airi.gateway.observing import Observing, SeenByAll, is_json, is_repeating
from airi.lifecycle.gates import Bound, Gate, Metric, Outcome
from airi.lifecycle.judging import findings_of
from airi.lifecycle.machine import start
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Analysis, Line, Pause, Phase, Rollout, SetWeight
from airi.state import open_store
from tests.lifecycle.world import Engines, MemoryState, Process, version

ROLLOUT = Rollout(id="r1", stable="one", candidate="two", steps=(Pause(),))
OTHER = Rollout(id="r2", stable="one", candidate="two", steps=(Pause(),))


async def test_what_several_gateways_have_seen_is_added_up(tmp_path: Path) -> None:
    async with await open_store(f"sqlite:///{tmp_path}/airi.db") as store:
        gateways, leader = [Observing(store) for _ in range(3)], SeenByAll(store)
        for turn in range(1, 4):
            for gateway in gateways:
                gateway.of(ROLLOUT, "one").requests += 2
                gateway.of(ROLLOUT, "two").nll_delta.add(0.5, 10)
                gateway.of(ROLLOUT, "two").ttft_ms.add(20.0)
                gateway.of(OTHER, "two").requests += 100
                await gateway.flush()
            stable, candidate = await leader.of(ROLLOUT)
            assert (stable.requests, candidate.requests) == (6 * turn, 0)
            assert candidate.nll_delta.answers == candidate.ttft_ms.count == 3 * turn
        again = await SeenByAll(store).of(ROLLOUT)
        assert again == (stable, candidate)


async def test_a_gateway_that_is_killed_loses_what_it_had_not_written() -> None:
    state = MemoryState()
    killed, after = Observing(state), Observing(state)
    killed.of(ROLLOUT, "one").requests = 7
    await killed.flush()
    killed.of(ROLLOUT, "one").requests = 9
    after.of(ROLLOUT, "one").requests = 1
    await after.flush()
    stable, _ = await SeenByAll(state).of(ROLLOUT)
    assert stable.requests == 8


async def test_nothing_new_is_not_written() -> None:
    state = MemoryState()
    observing = Observing(state)
    await observing.flush()
    assert not state.rows
    observing.of(ROLLOUT, "one").requests = 1
    await observing.flush()
    await observing.flush()
    assert state.changes == 1


class Flaky(MemoryState):
    """Does what it is told, and says once that it has not."""

    fails = False

    async def put_document(self, kind: str, name: str, body: str, *, revision: int) -> int | None:
        written = await super().put_document(kind, name, body, revision=revision)
        if self.fails:
            self.fails = False
            raise StateError("the database does not answer")
        return written


async def test_a_write_that_was_done_although_it_failed_counts_once() -> None:
    state = Flaky()
    observing = Observing(state)
    observing.of(ROLLOUT, "one").requests = 1
    await observing.flush()
    state.fails = True
    observing.of(ROLLOUT, "one").requests = 2
    with pytest.raises(StateError):
        await observing.flush()
    observing.of(ROLLOUT, "one").requests = 3
    await observing.flush()
    stable, _ = await SeenByAll(state).of(ROLLOUT)
    assert stable.requests == 3


async def test_the_end_is_written_too() -> None:
    state = MemoryState()
    observing = Observing(state)
    running = asyncio.create_task(observing.run())
    await asyncio.sleep(0)
    observing.of(ROLLOUT, "one").requests = 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    stable, _ = await SeenByAll(state).of(ROLLOUT)
    assert stable.requests == 1


async def test_rollouts_that_are_over_are_forgotten() -> None:
    state = MemoryState()
    observing = Observing(state)
    for rollout in (ROLLOUT, OTHER):
        observing.of(rollout, "one").requests = 1
    observing.forget(lambda rollout: rollout == "r1")
    await observing.flush()
    seen = SeenByAll(state)
    assert (await seen.of(ROLLOUT))[0].requests == 0
    assert (await seen.of(OTHER))[0].requests == 1


async def test_what_tells_of_no_rollout_under_way_is_dropped(tmp_path: Path) -> None:
    under_way = {"r2"}

    async def ask() -> set[str]:
        return under_way

    async with await open_store(f"sqlite:///{tmp_path}/airi.db") as store:
        gone, alive, other = (Observing(store, name=name) for name in ("gone", "alive", "other"))
        for gateway, rollouts in ((gone, [ROLLOUT]), (alive, [ROLLOUT]), (other, [ROLLOUT, OTHER])):
            for rollout in rollouts:
                gateway.of(rollout, "one").requests += 1
            await gateway.flush()
        leader = SeenByAll(store)
        assert (await leader.of(ROLLOUT))[0].requests == 3
        await leader.forget(ask)
        assert [record.name for record in (await store.documents("seen"))[0]] == ["other"]
        # One that lives has its document again once there is more to tell; what it had told counts once.
        under_way.add("r1")
        alive.of(ROLLOUT, "one").requests += 1
        await alive.flush()
        await leader.forget(ask)
        for each in (leader, SeenByAll(store)):
            assert (await each.of(ROLLOUT))[0].requests == 3
            assert (await each.of(OTHER))[0].requests == 1


async def test_one_document_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    async with await open_store(f"sqlite:///{tmp_path}/airi.db") as store:
        first, second = Observing(store, name="first"), Observing(store, name="second")
        leader = SeenByAll(store)
        first.of(ROLLOUT, "one").requests = 2
        await first.flush()
        assert (await leader.of(ROLLOUT))[0].requests == 2
        record = await store.document("seen", "first")
        assert record is not None
        await store.put_document("seen", "first", '{"r1": 7}', revision=record.revision)
        second.of(ROLLOUT, "one").requests = 5
        await second.flush()
        assert (await leader.of(ROLLOUT))[0].requests == 7, "what was known of it stays"
        assert (await SeenByAll(store).of(ROLLOUT))[0].requests == 5

        async def none() -> set[str]:
            return set()

        await leader.forget(none)
        assert [record.name for record in (await store.documents("seen"))[0]] == ["first"]


async def test_a_document_that_is_written_while_it_is_judged_is_not_dropped() -> None:
    state = MemoryState()
    observing, leader = Observing(state), SeenByAll(state)
    observing.of(ROLLOUT, "one").requests = 1
    await observing.flush()

    async def meanwhile() -> set[str]:
        observing.of(OTHER, "one").requests = 1
        await observing.flush()
        return set()

    await leader.forget(meanwhile)
    assert (await leader.of(OTHER))[0].requests == 1


async def test_who_leads_again_has_nothing_of_what_another_leader_has_dropped(tmp_path: Path) -> None:
    async def none() -> set[str]:
        return set()

    async with await open_store(f"sqlite:///{tmp_path}/airi.db") as store:
        gateway, leader, other = Observing(store), SeenByAll(store), SeenByAll(store)
        gateway.of(ROLLOUT, "one").requests = 1
        await gateway.flush()
        assert (await leader.of(ROLLOUT))[0].requests == 1
        leader.drop()
        await other.forget(none)
        assert (await leader.of(ROLLOUT))[0].requests == 0
        gateway.of(ROLLOUT, "one").requests = 2
        await gateway.flush()
        assert (await leader.of(ROLLOUT))[0].requests == 2


@pytest.mark.parametrize(
    ("tokens", "repeats"),
    [
        ([], False),
        (list(range(500)), False),
        ([7] * 31, False),
        ([7] * 32, True),
        ([*range(100), *[1, 2, 3] * 11], True),
        ([*[1, 2, 3] * 50, *range(100)], False),
        ([*range(64)] * 4, True),
        ([*range(64)] * 3, False),
        ([*range(65)] * 4, False),
        ([*range(10), *range(20, 31)] * 4, True),
    ],
)
def test_an_answer_that_ends_in_a_circle_repeats_itself(tokens: list[int], *, repeats: bool) -> None:
    assert is_repeating(tokens) is repeats


def test_json_is_told_from_what_is_cut_off() -> None:
    assert is_json('{"a": [1, 2]}')
    assert not is_json('{"a": [1, 2')
    assert not is_json("")


ERRORS = Gate(metric=Metric.ERRORS, bound=Bound.MAX, value=0.05, min_samples=20)
SLOWER = Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=0.5, min_samples=20)
AGREES = Gate(metric=Metric.AGREEMENT, bound=Bound.MIN, value=0.9, min_samples=20)


async def test_each_weight_is_analysed_by_what_is_seen_at_it() -> None:
    state, now = MemoryState(), 0
    leader = Process("leader", state, Engines(), SeenByAll(state), lambda: now)
    for id in ("one", "two"):
        await leader.registry.register(version("m", id))
        await leader.releases.make("m", id, {"m": id})
    asks = Analysis(gates=("errors", "slower", "tokens"))
    steps = tuple(step for weight in (5, 50, 100) for step in (SetWeight(weight=weight), asks))
    gates: dict[str, tuple[Gate, ...]] = {"errors": (ERRORS,), "slower": (SLOWER,), "tokens": (AGREES,)}
    rollout = Rollout(id="r", stable="one", candidate="two", steps=steps, gates=gates)
    await leader.lines.put(start(Line(name="m", stable="one"), rollout, 0))
    observing = Observing(state)
    for _ in range(30):
        observing.of(rollout, "two").agreement.add(10, 10)

    async def run() -> Rollout:
        nonlocal now
        for _ in range(12):
            now += 1000
            await leader.controller.tick()
            await asyncio.sleep(0.001)
        found = leader.lines.find("m").rollout
        assert found is not None
        return found

    for weight in (5, 50, 100):
        found = await run()
        assert (found.weight, found.phase) == (weight, Phase.RUNNING)
        assert found.waits_for.startswith(
            f"errors: error_rate 0 (max 0.05, 0 samples); 20 are needed at weight {weight}"
        )
        for release in ("one", "two"):
            seen = observing.of(found, release)
            if release == "two" or weight < 100:  # stable has none then
                seen.requests += 30
                seen.ttft_ms.add(20, 30)
        await observing.flush()
    assert (await run()).phase is Phase.COMPLETED


async def test_a_gate_fails_by_what_was_seen_at_any_weight() -> None:
    rollout = Rollout(
        id="r",
        stable="one",
        candidate="two",
        steps=(SetWeight(weight=5),),
        gates={"errors": (ERRORS,)},
        step=1,
    )
    good, bad = Seen(requests=1000), Seen(requests=1000, errors=900)
    for whole, now in ((bad, good), (good, bad)):
        found = findings_of(rollout, (good, whole), (good, now), None)
        assert found["errors"].outcome is Outcome.FAIL
    assert findings_of(rollout, (good, good), (good, good), None)["errors"].outcome is Outcome.PASS


async def test_times_are_compared_with_those_of_the_same_moment() -> None:
    """A machine that has become slow is no candidate that is."""
    slower = Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=0.1, min_samples=20)
    rollout = Rollout(
        id="r",
        stable="one",
        candidate="two",
        steps=(SetWeight(weight=50),),
        gates={"latency": (slower,)},
        step=1,
        weight=50,
    )
    fast, slow = Seen(), Seen()
    fast.ttft_ms.add(20, 2000)
    slow.ttft_ms.add(80, 2000)
    assert findings_of(rollout, (fast, slow), (slow, slow), None)["latency"].outcome is Outcome.PASS
    assert findings_of(rollout, (fast, slow), (Seen(), Seen()), None)["latency"].outcome is Outcome.HOLD
    assert findings_of(rollout, (fast, fast), (fast, slow), None)["latency"].outcome is Outcome.FAIL
    most = replace(slower, bound=Bound.MAX, value=40)  # whatever stable's are
    rollout = replace(rollout, gates={"latency": (most,)})
    assert findings_of(rollout, (fast, slow), (fast, fast), None)["latency"].outcome is Outcome.FAIL
