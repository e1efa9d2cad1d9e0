"""Any sequence of making, rotating, revoking and waiting: the ring accepts what a model of two lines says."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import ConfigError
from airi.policy.keys import create_key, revoke_key, rotate_key
from airi.policy.ring import KeyRing, KeyWatch
from airi.policy.tenants import Tenants
from airi.state import Store, open_store

from .conftest import Clock

LIFETIMES = st.none() | st.integers(1, 100)
STEPS = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(["a", "b"]), LIFETIMES),
    st.tuples(st.just("revoke"), st.integers(0, 9)),
    st.tuples(st.just("rotate"), st.integers(0, 9), st.integers(0, 50), LIFETIMES),
    st.tuples(st.just("wait"), st.integers(1, 60)),
)


@dataclass
class Model:
    """One key as its owner was told."""

    text: str
    tenant: str
    lifetime: int | None
    ends: float
    rotated: bool = False


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=20))
def test_a_key_is_accepted_from_its_making_to_its_first_end(steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(f"sqlite:///{folder}/state.db", steps))


async def _play(url: str, steps: list[tuple[object, ...]]) -> None:
    clock = Clock()
    clock.now = 1_000_000.0
    models: list[Model] = []
    async with await open_store(url) as store, await open_store(url) as other:
        ring = KeyRing(Tenants(), clock=clock)
        watch = KeyWatch(other, ring, interval_s=3600)
        for step in steps:
            await _do(store, clock, models, *step)
            await watch.refresh()
            for model in models:
                found = ring.find(f"Bearer {model.text}")
                assert (found is not None) == (clock.now < model.ends), step
                if found is not None:
                    assert found.tenant == model.tenant


async def _do(store: Store, clock: Clock, models: list[Model], what: object, *arguments: object) -> None:
    now = clock.now
    match what, arguments:
        case "create", (str(tenant), lifetime):
            assert lifetime is None or isinstance(lifetime, int)
            new = await create_key(store, tenant, lifetime_s=lifetime, now=now)
            models.append(Model(new.text, tenant, lifetime, _end(now, lifetime)))
        case "wait", (int(seconds),):
            clock.now += seconds
        case "revoke", (int(index), *_) if models:
            model = models[index % len(models)]
            await revoke_key(store, model.text.split("-")[2], now=now)
            model.ends = min(model.ends, now)
            model.rotated = True
        case "rotate", (int(index), int(overlap), lifetime) if models:
            assert lifetime is None or isinstance(lifetime, int)
            model = models[index % len(models)]
            try:
                new = await rotate_key(
                    store, model.text.split("-")[2], overlap_s=overlap, lifetime_s=lifetime, now=now
                )
            except ConfigError:
                assert model.rotated or model.ends <= now
                return
            assert not model.rotated
            assert now < model.ends
            kept = model.lifetime if lifetime is None else lifetime
            models.append(Model(new.text, model.tenant, kept, _end(now, kept)))
            model.rotated, model.ends = True, min(model.ends, now + overlap)


def _end(now: float, lifetime: int | None) -> float:
    return float("inf") if lifetime is None else now + lifetime
