"""What a line was served with before sleeps, so that going back is waking; what is retired never comes back."""

from __future__ import annotations

import asyncio

import pytest

from airi.errors import LifecycleError, VersionError
from airi.lifecycle import VersionState
from airi.lifecycle.machine import start
from airi.lifecycle.operators import Operator, Plan
from airi.lifecycle.rollouts import OnFailure, Phase, SetWeight

from .test_controller import World
from .world import LINGER_MS, Process, version

PLAN = Plan("g1", (SetWeight(weight=50),), {}, OnFailure.ROLLBACK)
LONG_S = LINGER_MS // 1000 + 3


async def moved_on(world: World) -> Process:
    """A line whose rollout to g2 is long over."""
    process = await world.begin()
    world.notes.candidate.requests = 200
    await process.lines.put(start(process.lines.find("general"), world.rollout(), world.now))
    await world.run(process, 20 + LONG_S)
    assert process.lines.find("general").stable == "g2"
    return process


def state_of(process: Process, id: str) -> VersionState:
    return process.registry.find("general", id).state


def operator(world: World) -> Operator:
    return Operator(world.state, lambda: world.now)  # type: ignore[arg-type]


async def test_the_version_before_sleeps_and_a_rollout_back_wakes_it() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    assert state_of(process, "g1") is VersionState.ASLEEP
    assert world.engines.held == {"general@g1", "general@g2"}
    assert world.engines.sleeping == {"general@g1"}
    await operator(world).start("general", PLAN, candidate="g1", who="ops")
    await world.run(process, 20 + LONG_S)
    assert process.lines.find("general").stable == "g1"
    assert (state_of(process, "g1"), state_of(process, "g2")) == (VersionState.SERVING, VersionState.ASLEEP)


async def test_what_no_line_was_served_with_goes() -> None:
    """g3 is stable: g1 is not what it would go back to any more."""
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    await process.registry.register(version("general", "g3"))
    await process.releases.make("general", "g3", {"general": "g3"})
    await operator(world).start("general", PLAN, candidate="g3", who="ops")
    await world.run(process, 20 + LONG_S)
    states = [state_of(process, id) for id in ("g1", "g2", "g3")]
    assert states == [VersionState.REGISTERED, VersionState.ASLEEP, VersionState.SERVING]
    assert world.engines.held == {"general@g2", "general@g3"}


async def test_one_that_sleeps_goes_where_another_needs_its_memory() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    world.engines.room = 2
    await process.registry.register(version("general", "g3"))
    await process.releases.make("general", "g3", {"general": "g3"})
    await operator(world).start("general", PLAN, candidate="g3", who="ops")
    await world.run(process, 3)
    assert state_of(process, "g3") in (VersionState.READY, VersionState.SERVING)
    assert state_of(process, "g1") is VersionState.REGISTERED
    assert world.engines.held == {"general@g2", "general@g3"}


async def test_one_that_cannot_sleep_is_let_go() -> None:
    world = World()
    world.engines.sleepable = True
    world.engines.broken.add("general@g1")
    process = await moved_on(world)
    assert (state_of(process, "g1"), world.engines.held) == (VersionState.REGISTERED, {"general@g2"})


async def test_one_that_cannot_be_woken_fails_and_goes() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    world.engines.broken.add("general@g1")
    await operator(world).start("general", PLAN, candidate="g1", who="ops")
    line = await world.run(process, 4)
    assert line.rollout is not None
    assert (line.stable, line.rollout.phase) == ("g2", Phase.FAILED)
    assert world.engines.held == {"general@g2"}


async def test_what_an_engine_has_awake_or_asleep_is_so() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    world.engines.sleeping.clear()  # somebody has woken it
    process.controller._begin = lambda *_: None  # type: ignore[method-assign]
    await world.run(process, 1)
    assert state_of(process, "g1") is VersionState.READY
    world.engines.sleeping.add("general@g1")
    await world.run(process, 1)
    assert state_of(process, "g1") is VersionState.ASLEEP


async def test_an_engine_that_died_holds_none_asleep() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    world.engines.die("general@g1")
    await world.run(process, 2)
    assert state_of(process, "g1") is VersionState.REGISTERED


async def test_a_retired_version_goes_and_never_comes_back() -> None:
    world = World()
    world.engines.sleepable = True
    process = await moved_on(world)
    who = operator(world)
    with pytest.raises(VersionError, match="general@g2 is in g2, which general is served with; it cannot"):
        await who.retire("general", "g2")
    with pytest.raises(VersionError, match="general has no version 'g9'; registered: g1, g2"):
        await who.retire("general", "g9")
    assert (await who.retire("general", "g1")).state is VersionState.RETIRED
    await world.run(process, 2)
    assert world.engines.held == {"general@g2"}
    with pytest.raises(LifecycleError, match="candidate is g1, of which general@g1 is retired"):
        await who.start("general", PLAN, candidate="g1", who="ops")
    assert await process.releases.make("general", "g1", {"general": "g1"})  # as each start of a server does
    await asyncio.sleep(0)


async def test_a_version_that_is_kept_or_loaded_is_not_retired() -> None:
    world = World()
    process = await world.begin()
    who = operator(world)
    await who.refresh()
    await who.registry.keep(who.registry.find("general", "g2"), kept=True)
    with pytest.raises(VersionError, match="general@g2 is kept loaded"):
        await who.retire("general", "g2")
    await world.run(process, 3)
    await who.refresh()
    await who.registry.keep(who.registry.find("general", "g2"), kept=False)
    with pytest.raises(VersionError, match="general@g2 is ready and cannot become retired"):
        await who.retire("general", "g2")
