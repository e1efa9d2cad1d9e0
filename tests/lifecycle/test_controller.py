"""What moves rollouts on, with control processes that are killed at any write, and operators who come in between."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from msgspec.structs import replace

from airi.errors import AiriError, LifecycleError
from airi.lifecycle import VersionState
from airi.lifecycle.gates import Bound, Gate, Metric
from airi.lifecycle.lease import Lease
from airi.lifecycle.machine import Candidate, Command, command, start
from airi.lifecycle.operators import Operator
from airi.lifecycle.rollouts import Analysis, Line, Pause, Phase, Rollout, SetWeight

from .world import LEASE_MS, LINGER_MS, Engines, Killed, MemoryState, Notes, Process, version

ERRORS: dict[str, tuple[Gate, ...]] = {
    "errors": (Gate(metric=Metric.ERRORS, bound=Bound.MAX, value=0.05, min_samples=10),)
}
ADVANCED = (Phase.RUNNING, Phase.COMPLETED)
STEPS = (
    SetWeight(weight=10),
    Pause(duration_s=5),
    Analysis(gates=("errors",)),
    SetWeight(weight=60),
    Pause(duration_s=2),
)


class World:
    def __init__(self) -> None:
        self.state, self.engines, self.notes, self.now = MemoryState(), Engines(), Notes(), 0
        self.count = 0
        self.before: Line | None = None
        self.asleep: frozenset[str] = frozenset()

    def process(self) -> Process:
        self.count += 1
        return Process(f"p{self.count}", self.state, self.engines, self.notes, lambda: self.now)

    async def begin(self) -> Process:
        process = self.process()
        for id in ("g1", "g2"):
            await process.registry.register(version("general", id))
            await process.releases.make("general", id, {"general": id})
        first = process.registry.find("general", "g1")
        self.engines.held.add(first.name)
        await process.lines.put(Line(name="general", stable="g1"))
        await process.controller.tick()
        return process

    def rollout(self, candidate: str = "g2", id: str = "r") -> Rollout:
        stable = "g1" if candidate == "g2" else "g2"
        return Rollout(id=id, stable=stable, candidate=candidate, steps=STEPS, gates=ERRORS)

    async def run(self, process: Process, seconds: int) -> Line:
        for _ in range(seconds):
            self.now += 1000
            await process.controller.tick()
            for _ in range(4):
                await asyncio.sleep(0)
            self.check(process)
        return process.lines.find("general")

    def check(self, process: Process) -> None:
        """What a line may give to requests is loaded, or an engine has died with it and nothing went for its sake."""
        held = self.engines.held - self.engines.sleeping
        for line in process.lines.all:
            split, rollout = line.split, line.rollout
            names = {split.stable} | ({split.candidate} if split.weight > 0 else set())
            assert {f"general@{name}" for name in names} <= held | self.engines.lost
            assert f"general@{split.stable}" not in self.engines.gone
            if (
                rollout is not None
                and rollout.phase is Phase.COMPLETED
                and f"general@{split.stable}" not in held
                and f"general@{rollout.stable}" not in self.asleep
            ):
                assert f"general@{rollout.stable}" not in self.engines.gone
        self.engines.gone.clear()
        self.asleep = self.engines.asleep()
        self._check_steps(process.lines.find("general"))

    def _check_steps(self, line: Line) -> None:
        """Nothing is done, but what somebody has said, while the candidate is not loaded."""
        was, now = None if self.before is None else self.before.rollout, line.rollout
        self.before = line
        if was is None or now is None or was.id != now.id or "promoted" in now.events[-1].what:
            return
        if (was.step, was.weight, was.phase) != (now.step, now.weight, now.phase) and now.phase in ADVANCED:
            assert f"general@{now.candidate}" in self.engines.held - self.engines.sleeping


async def test_a_rollout_from_start_to_the_old_version_gone() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    line = await world.run(process, 4)
    assert (line.split.weight, process.registry.find("general", "g2").state) == (10, VersionState.SERVING)
    world.notes.candidate.requests = 200
    line = await world.run(process, 10)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)
    assert "general@g1" in world.engines.held  # sessions that began with it may go on
    await world.run(process, LINGER_MS // 1000 + 2)
    assert world.engines.held == {"general@g2"}
    assert process.registry.find("general", "g1").state is VersionState.REGISTERED


async def test_a_candidate_without_room_fails_with_the_reason() -> None:
    world = World()
    process = await world.begin()
    world.engines.room = 1
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    line = await world.run(process, 5)
    assert line.rollout is not None
    assert line.rollout.phase is Phase.FAILED
    assert line.rollout.events[-1].what == "general@g2: general@g2 needs 1 GiB more than there is"
    assert (line.stable, world.engines.held) == ("g1", {"general@g1"})


async def test_a_gate_rolls_back_and_the_candidate_goes() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    await world.run(process, 4)
    world.notes.candidate.requests = world.notes.candidate.errors = 50
    line = await world.run(process, 1)
    assert (line.split.releases, line.rollout and line.rollout.phase) == (("g1",), Phase.ABORTED)
    await world.run(process, LINGER_MS // 1000 + 3)
    assert world.engines.held == {"general@g1"}


async def test_the_lease_has_one_holder_who_may_be_gone() -> None:
    state = MemoryState()
    one, other = Lease(state, "l", "one", LEASE_MS), Lease(state, "l", "other", LEASE_MS)  # type: ignore[arg-type]
    assert await one.hold(0)
    assert not await other.hold(1)
    assert await one.hold(LEASE_MS - 1)
    assert not await other.hold(LEASE_MS + 1)
    assert await other.hold(2 * LEASE_MS)
    assert not await one.hold(2 * LEASE_MS + 1)
    await other.release(2 * LEASE_MS + 2)
    assert await one.hold(2 * LEASE_MS + 3)


async def test_a_candidate_that_is_not_loaded_any_more_gets_no_further() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    line = await world.run(process, 4)
    assert (line.split.weight, world.engines.held) == (10, {"general@g1", "general@g2"})
    world.notes.candidate.requests = 200
    world.engines.slow["general@g2"] = asyncio.Event()
    world.engines.die()
    line = await world.run(process, 40)
    assert (line.stable, line.split.weight, world.engines.held) == ("g1", 10, {"general@g1"})
    assert line.rollout is not None
    assert line.rollout.waits_for == "g2, which is not loaded any more; it is being loaded again"
    for said in (Command.PROMOTE, Command.PROMOTE_FULL):
        with pytest.raises(LifecycleError, match="g2 is not loaded; nothing can be promoted"):
            await Operator(world.state, lambda: world.now).say("general", said, who="ops")  # type: ignore[arg-type]
    world.engines.slow["general@g2"].set()
    line = await world.run(process, 10)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)


async def test_stable_stays_while_what_follows_it_is_not_loaded() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    await world.run(process, 4)
    # Promoted in full in the moment in which its engine has gone, with nobody having seen that.
    world.engines.die("general@g2")
    world.engines.broken.add("general@g2")
    await Operator(world.state, lambda: world.now).say("general", Command.PROMOTE_FULL, who="ops")  # type: ignore[arg-type]
    line = await world.run(process, 5 * LINGER_MS // 1000)
    assert (line.stable, world.engines.held) == ("g2", {"general@g1"})
    assert process.registry.find("general", "g1").state is VersionState.SERVING
    world.engines.broken.clear()
    await world.run(process, 4 * LINGER_MS // 1000)
    assert world.engines.held == {"general@g2"}


async def test_a_candidate_that_is_being_let_go_is_loaded_before_it_is_tried_again() -> None:
    world = World()
    process = await world.begin()
    operator = Operator(world.state, lambda: world.now)  # type: ignore[arg-type]
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    await world.run(process, 2)  # loaded, and no weight yet
    await operator.say("general", Command.ABORT, who="ops")
    world.engines.slow["general@g2"] = asyncio.Event()
    await world.run(process, 2)
    await process.lines.put(start(process.lines.find("general"), world.rollout(id="again"), world.now))
    world.notes.candidate.requests = 200
    line = await world.run(process, 20)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g1", Phase.PREPARING)
    world.engines.slow["general@g2"].set()
    line = await world.run(process, 20)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)


@pytest.mark.parametrize("error", [TimeoutError(), OSError(28, "No space left on device")])
async def test_whatever_a_load_ends_with_the_rollout_ends_with_it(error: Exception) -> None:
    world = World()
    process = await world.begin()
    world.engines.broken.add("general@g2")
    world.engines.error = error
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    line = await world.run(process, 5)
    assert line.rollout is not None
    assert line.rollout.phase is Phase.FAILED
    assert line.rollout.events[-1].what.startswith(f"general@g2: {type(error).__name__}")


async def test_a_load_that_ends_the_process_each_time_is_not_tried_for_ever() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    world.engines.slow["general@g2"] = asyncio.Event()
    for _ in range(3):
        line = await world.run(process, 3)
        assert line.rollout is not None
        assert line.rollout.phase is Phase.PREPARING
        await kill(process)
        process = world.process()
        world.now += 2 * LEASE_MS
    line = await world.run(process, 3)
    assert line.rollout is not None
    assert line.rollout.phase is Phase.FAILED
    assert line.rollout.events[-1].what.startswith(
        "general@g2: 3 times whoever loaded it has ended meanwhile"
    )


async def test_a_load_that_a_stop_has_ended_was_no_try() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    world.engines.slow["general@g2"] = asyncio.Event()
    for _ in range(5):
        line = await world.run(process, 3)
        assert line.rollout is not None
        assert line.rollout.phase is Phase.PREPARING
        assert process.registry.find("general", "g2").tries == 1
        await process.controller.close()
        assert process.registry.find("general", "g2").state is VersionState.REGISTERED
        process = world.process()
    world.engines.slow.pop("general@g2")
    line = await world.run(process, 4)
    assert line.split.weight == 10


async def test_a_line_whose_release_is_not_there_stops_no_other() -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(Line(name="another", stable="nowhere"))
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    world.notes.candidate.requests = 200
    for _ in range(15):
        world.now += 1000
        assert await process.controller.tick()
        await asyncio.sleep(0.001)
    line = process.lines.find("general")
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)
    # What the other one needs nobody knows, so nothing goes.
    await process.controller.tick()
    assert world.engines.held == {"general@g1", "general@g2"}


async def test_what_lines_of_other_configs_need_is_neither_loaded_nor_let_go() -> None:
    world = World()
    process = await world.begin()
    await process.registry.register(version("other", "o1"))
    for line, release, member in (("alias", "a2", {"general": "g2"}), ("other", "o1", {"other": "o1"})):
        await process.releases.make(line, release, member)
        await process.lines.put(Line(name=line, stable=release))
    process.lines._only = {"general"}
    world.engines.unknown.add("other@o1")
    await world.run(process, 20)
    assert world.engines.held == {"general@g1"}
    world.engines.held |= {"general@g2", "other@o1"}  # by whoever serves these lines
    await process.registry.move(process.registry.find("other", "o1"), VersionState.LOADING)
    await world.run(process, 20)
    assert world.engines.held == {"general@g1", "general@g2", "other@o1"}
    assert process.registry.find("other", "o1").state is VersionState.LOADING


async def test_whoever_leads_without_a_version_leaves_its_line_to_others() -> None:
    world = World()
    process = await world.begin()
    world.engines.unknown.add("general@g2")
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    line = await world.run(process, 20)
    assert (line.rollout and line.rollout.phase, line.split.weight) == (Phase.PREPARING, 0)
    assert line.rollout is not None
    assert line.rollout.waits_for == "a gateway that leads and whose config has general@g2"
    world.engines.unknown.clear()
    world.notes.candidate.requests = 200
    line = await world.run(process, 15)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)


async def kill(process: Process) -> None:
    """Ends what a process was at, where it stands."""
    tasks = list(process.controller._moving.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(60))
async def test_killed_at_any_write_the_next_one_goes_on(seed: int) -> None:
    """Operators start, promote and abort; processes die before and after writes; engines lose and keep versions."""
    rng = random.Random(seed)
    world = World()
    world.engines.sleepable = seed % 2 == 1
    process = await world.begin()
    other = world.process()
    for turn in range(60):
        world.now += rng.choice((100, 1000, 4000, 12_000))
        world.notes.candidate.requests += rng.randint(0, 30)
        if rng.random() < 0.05:
            world.notes.candidate.errors = rng.randint(0, world.notes.candidate.requests)
        if rng.random() < 0.1:
            world.engines.broken ^= {"general@g2"}
        if rng.random() < 0.1:
            world.engines.error = rng.choice((None, TimeoutError(), OSError(28, "No space left on device")))
        if rng.random() < 0.15:
            world.engines.die(*rng.choice(((), ("general@g1",), ("general@g2",))))
        if rng.random() < 0.2:
            slow = world.engines.slow.pop(name := f"general@g{rng.randint(1, 2)}", None)
            if slow is None:
                world.engines.slow[name] = asyncio.Event()
            else:
                slow.set()
        if rng.random() < 0.4:
            world.state.kill_in = rng.randint(0, 5)
        acting = rng.choice((process, other))
        with suppress(Killed):
            if rng.random() < 0.3:
                await operate(world, acting, rng, f"r{turn}")
            await acting.controller.tick()
        await asyncio.sleep(0.001)
        if world.state.was_killed:  # whatever it was at, all of it has ended
            await kill(acting)
            fresh = world.process()
            process, other = (fresh, other) if acting is process else (process, fresh)
            world.notes.candidate.errors = 0
        world.state.kill_in, world.state.was_killed = None, False
        await process.refresh()
        world.check(process)
    await settle(world, process)


async def operate(world: World, process: Process, rng: random.Random, id: str) -> None:
    await process.refresh()
    line = process.lines.find("general")
    try:
        if line.rollout is None or line.rollout.phase.ended:
            candidate = "g2" if line.stable == "g1" else "g1"
            failed = process.registry.find("general", candidate)
            if failed.state is VersionState.FAILED:
                await process.registry.move(failed, VersionState.REGISTERED)
            await process.lines.put(start(line, world.rollout(candidate, id), world.now))
        else:
            members = process.releases.members(process.releases.find("general", line.rollout.candidate))
            said = rng.choice(list(Command))
            await process.lines.put(
                command(line, said, world.now, who="ops", candidate=Candidate.of(members))
            )
    except AiriError:
        return


async def settle(world: World, process: Process) -> None:
    """Left alone, with nothing wrong any more, whatever was begun ends, and only what serves is held."""
    world.engines.broken.clear()
    for slow in world.engines.slow.values():
        slow.set()
    world.notes.candidate.requests, world.notes.candidate.errors = 1000, 0
    world.now += 2 * LEASE_MS
    line = await world.run(process, 60)
    assert line.rollout is None or line.rollout.phase.ended
    assert world.engines.held - world.engines.sleeping == {f"general@{line.stable}"}
    states = {v.name: v.state for v in process.registry.versions()}
    assert states.pop(f"general@{line.stable}") is VersionState.SERVING
    asleep = {name for name, state in states.items() if state is VersionState.ASLEEP}
    assert asleep == world.engines.sleeping
    assert asleep <= ({f"general@{line.rollout.stable}"} if line.rollout else set())
    assert set(states.values()) <= {VersionState.REGISTERED, VersionState.FAILED, VersionState.ASLEEP}
    assert replace(line, revision=0) == replace(process.lines.find("general"), revision=0)


async def test_what_is_wrong_with_one_line_ends_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    process = await world.begin()
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("counts that nobody foresaw")

    with monkeypatch.context() as broke:
        broke.setattr(world.notes, "of", broken)
        line = await world.run(process, 5)
        assert (line.stable, line.rollout and line.rollout.phase) == ("g1", Phase.PREPARING)
        assert process.registry.find("general", "g2").state is VersionState.READY, "versions are looked after"
    world.notes.candidate.requests = 200
    line = await world.run(process, 40)
    assert (line.stable, line.rollout and line.rollout.phase) == ("g2", Phase.COMPLETED)
