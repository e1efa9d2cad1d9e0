"""What a set knows of its replicas' KV blocks, with real engines: exactly what they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from airi import builtin
from airi.engine import EngineOptions, ModelOptions
from airi.engine.replicas import replica_options
from airi.errors import CheckpointError
from airi.routing import Decision, ReplicaSet
from airi.routing.starting import reached, started
from airi.sampling_params import SamplingParams
from airi.transport import GenerateRequest
from tests.transport.calls import collect

MIB = 2**20
BLOCK = 16


def options(**given: Any) -> EngineOptions:
    model = ModelOptions(path=str(builtin.path()), name="demo", kv_min=MIB)
    fields: dict[str, Any] = {"models": (model,), "device": "cpu", "kv_memory": 32 * MIB, "threads": 2}
    return EngineOptions(**{**fields, **given})


@asynccontextmanager
async def replicas_of(given: EngineOptions) -> AsyncIterator[ReplicaSet]:
    async with started(replica_options(given, 2)) as starting:
        replicas = await starting
        yield replicas
        assert [replica.lives for replica in replicas.replicas] == [1, 1], "an engine has died"


def prompt_of(
    first: int, length: int, *, model: str = "demo", tenant: int = 0, salt: bytes | None = None
) -> GenerateRequest:
    tokens = [(first * 31 + i) % 200 + 10 for i in range(length)]
    return GenerateRequest(
        model=model,
        tokens=GenerateRequest.pack_tokens(tokens),
        params=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
        tenant=tenant,
        cache_salt=salt,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def stored(replicas: ReplicaSet, name: str, model: str = "demo") -> int:
    return replicas._routers[model].num_stored(name)


async def sent(replicas: ReplicaSet, message: GenerateRequest) -> Decision:
    await collect(replicas, message)
    decision = replicas.decision(message.request_id)
    assert decision is not None
    return decision


def known(decision: Decision) -> dict[str, int]:
    """Tokens that each replica is said to have stored."""
    return {decision.names[each.replica]: each.stored_tokens for each in decision.choice.candidates}


def hit_tokens(replicas: ReplicaSet) -> int:
    return 0 if replicas.stats is None else replicas.stats.models[0].prefix_hit_tokens


async def test_hits_are_foretold_with_salts_and_isolated_tenants() -> None:
    async with replicas_of(options(isolate_tenants=True)) as replicas:
        await until(lambda: replicas.stats is not None)
        first = await sent(replicas, prompt_of(1, 10 * BLOCK + 3))
        assert known(first) == {"0": 0, "1": 0}
        name, other = first.replica, "1" if first.replica == "0" else "0"
        await until(lambda: stored(replicas, name) == 10)
        before = hit_tokens(replicas)
        again = await sent(replicas, prompt_of(1, 10 * BLOCK + 3))
        assert again.replica == name
        assert known(again) == {name: 10 * BLOCK, other: 0}
        await until(lambda: hit_tokens(replicas) == before + 10 * BLOCK)
        for message in (prompt_of(1, 80, tenant=4), prompt_of(1, 80, salt=b"x")):
            assert known(await sent(replicas, message)) == {name: 0, other: 0}
        await until(lambda: hit_tokens(replicas) == before + 10 * BLOCK)
        await until(lambda: replicas.stats is not None and replicas.stats.models[0].prompt_tokens >= 480)
        assert hit_tokens(replicas) == before + 10 * BLOCK


async def test_a_gateway_that_comes_later_knows_what_there_is(tmp_path: Any) -> None:
    async with replicas_of(options()) as replicas:
        for i in range(4):
            await sent(replicas, prompt_of(i, 6 * BLOCK))
        await until(lambda: stored(replicas, "0") + stored(replicas, "1") >= 20)
        endpoints = [replica.client.endpoint for replica in replicas.replicas]
        async with reached(endpoints) as reaching:
            later = await reaching
            await until(lambda: [stored(later, n) for n in "01"] == [stored(replicas, n) for n in "01"])
            decision = await sent(later, prompt_of(2, 6 * BLOCK))
            assert sorted(known(decision).values()) == [0, 5 * BLOCK]  # the last token is computed anyway


async def test_events_that_were_missed_are_made_up_for() -> None:
    """A ring of 16 events, of which each step of a long prompt makes more: sets that came before and after agree."""
    given = options(kv_event_records=16, max_batch_tokens=1024)
    async with replicas_of(given) as replicas:
        for i in range(3):
            await sent(replicas, prompt_of(i, 60 * BLOCK))
        endpoints = [replica.client.endpoint for replica in replicas.replicas]
        async with reached(endpoints) as reaching:
            later = await reaching
            await until(lambda: sum(stored(later, n) for n in "01") > 60)
            await until(lambda: [stored(later, n) for n in "01"] == [stored(replicas, n) for n in "01"])


async def test_engines_that_hash_otherwise_are_guessed_about(caplog: pytest.LogCaptureFixture) -> None:
    one, other = replica_options(options(), 2)
    async with started([one, replace(other, hash_key="0" * 32)]) as starting:
        replicas = await starting
        await until(lambda: "hashes prefixes of demo otherwise than the others" in caplog.text)
        decisions = [await sent(replicas, prompt_of(i // 2, 20 * BLOCK)) for i in range(8)]
        assert {each.replica for each in decisions} == {"0", "1"}
        for first, again in zip(decisions[::2], decisions[1::2], strict=True):
            assert first.replica == again.replica
        assert min(stored(replicas, name) for name in "01") == 0


async def test_models_that_come_and_go_are_on_all_replicas() -> None:
    async with replicas_of(options()) as replicas:
        info = await replicas.load(ModelOptions(path=str(builtin.path()), name="more"))
        assert info.name == "more"
        assert [model.name for model in replicas.models] == ["demo", "more"]
        first = await sent(replicas, prompt_of(1, 8 * BLOCK, model="more"))
        await until(lambda: stored(replicas, first.replica, "more") == 8)
        assert [stored(replicas, name) for name in "01"] == [0, 0]
        with pytest.raises(CheckpointError):
            await replicas.load(ModelOptions(path="/nowhere", name="none"))
        await replicas.unload("more")
        await asyncio.sleep(1.5)  # counters are sent
        assert [model.name for model in replicas.models] == ["demo"]
        assert len((await collect(replicas, prompt_of(3, 20))).tokens) == 2
