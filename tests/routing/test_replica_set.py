"""Which replica a request goes to, and that a set answers as one engine would."""

from __future__ import annotations

import asyncio

import pytest

from airi.errors import ConfigError, EngineDeadError, ModelNotFoundError
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.routing import Decision, ReplicaSet
from airi.transport import EngineClient, ForbidFor, OutputStream
from airi.transport.stub import StubOptions
from tests.transport.calls import collect, request
from tests.transport.conftest import running_stub

from .conftest import RunStubs, prompt_of, replica_set


async def test_requests_are_divided_and_all_are_answered(endpoints: list[str], run_stubs: RunStubs) -> None:
    stubs = run_stubs(step_us=2000)
    async with replica_set(endpoints) as replicas:
        answers = await asyncio.gather(*(collect(replicas, prompt_of(i)) for i in range(30)))
        assert [len(answer.tokens) for answer in answers] == [4] * 30
        assert replicas.num_running == 0
    assert sum(stub.num_requests for stub in stubs) == 30
    assert all(stub.num_requests >= 5 for stub in stubs)


async def test_prompts_that_begin_alike_go_to_one_replica(endpoints: list[str], run_stubs: RunStubs) -> None:
    stubs = run_stubs()
    async with replica_set(endpoints) as replicas:
        for _ in range(6):
            for first in (1, 2, 3):
                await collect(replicas, prompt_of(first, 512))
    assert sorted(stub.num_requests for stub in stubs) == [6, 6, 6]


async def test_a_cache_salt_keeps_prompts_apart(endpoints: list[str], run_stubs: RunStubs) -> None:
    run_stubs()
    async with replica_set(endpoints) as replicas:
        cached = []
        for salt in (None, b"a", b"a", b"b", None):
            message = prompt_of(1, 512)
            message.cache_salt = salt
            await collect(replicas, message)
            decision = replicas.decision(message.request_id)
            assert decision is not None
            cached.append(max(each.cached_tokens for each in decision.choice.candidates))
    assert cached == [0, 0, 496, 0, 496]


async def test_a_decision_says_where_and_why(endpoints: list[str], run_stubs: RunStubs) -> None:
    run_stubs()
    async with replica_set(endpoints) as replicas:
        told: list[Decision] = []
        replicas.on_decision = told.append
        message = prompt_of(7, 512)
        await collect(replicas, message)
        decision = replicas.decision(message.request_id)
        assert decision is not None
        assert told == [decision]
        assert decision.replica == replicas.replica_of(message.request_id)
        assert sorted(decision.names[each.replica] for each in decision.choice.candidates) == ["0", "1", "2"]
        assert decision.input_tokens == 512
        assert decision.took_s > 0
        assert await replicas.explain(message.request_id) == [f"request {message.request_id} is the stub's"]
        assert await replicas.explain(10**6) == []
        assert replicas.replica_of(10**6) is None


async def test_decisions_that_are_kept_are_bounded(
    endpoints: list[str], run_stubs: RunStubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.routing.replica_set._DECISIONS", 4)
    run_stubs()
    async with replica_set(endpoints) as replicas:
        messages = [request(1) for _ in range(6)]
        for message in messages:
            await collect(replicas, message)
        kept = [replicas.decision(message.request_id) is not None for message in messages]
    assert kept == [False, False, True, True, True, True]


async def test_errors_of_requests_are_those_of_one_engine(endpoints: list[str], run_stubs: RunStubs) -> None:
    run_stubs()
    async with replica_set(endpoints) as replicas:
        with pytest.raises(ModelNotFoundError, match="'other' is not loaded; loaded: stub"):
            await collect(replicas, request(model="other"))
        message = request(4000)
        stream = replicas.open(message)
        with pytest.raises(ValueError, match="is in use"):
            replicas.submit(message, lambda _: None)
        stream.close()


async def test_requests_can_be_cancelled_and_abandoned(endpoints: list[str], run_stubs: RunStubs) -> None:
    stubs = run_stubs(step_us=1000)
    async with replica_set(endpoints) as replicas:
        one, other = request(4000), request(4000)
        streams = [OutputStream(replicas, each.request_id) for each in (one, other)]
        for message, stream in zip((one, other), streams, strict=True):
            replicas.submit(message, stream.push)
            await anext(stream)
        replicas.cancel(one.request_id)
        reasons = [output.finish_reason async for output in streams[0]]
        assert reasons[-1] == "cancelled"
        streams[1].close()
        assert replicas.num_running == 0
        replicas.cancel(one.request_id)
        replicas.abandon(one.request_id)
        while any(stub.num_running for stub in stubs):
            await asyncio.sleep(0.01)


async def test_counters_are_sums_and_windows_the_smallest(endpoints: list[str]) -> None:
    options = [
        StubOptions(endpoint=each, max_model_len=size)
        for each, size in zip(endpoints, (64, 32), strict=False)
    ]
    with running_stub(options[0]), running_stub(options[1]):
        async with replica_set(endpoints[:2]) as replicas:
            assert [model.max_model_len for model in replicas.models] == [32]
            await asyncio.gather(*(collect(replicas, prompt_of(i, 16)) for i in range(8)))
            while replicas.stats is None or replicas.stats.models[0].generated_tokens < 32:
                await asyncio.sleep(0.02)
            assert replicas.stats.models[0].prompt_tokens == 8 * 16
            assert replicas.stats.models[0].kv_blocks_total == 2 * 1024


async def test_engines_with_other_models_of_one_name_are_refused(endpoints: list[str]) -> None:
    options = [StubOptions(endpoint=each) for each in endpoints[:2]]
    with running_stub(options[0]), running_stub(options[1]) as other:
        other._info = other._info.__class__(name="stub", path="stub", max_model_len=8, vocab_size=7)
        other.server.ready([other._info])
        with pytest.raises(
            ConfigError, match=r"--engine: .* serve different models as stub: architecture is"
        ):
            async with replica_set(endpoints[:2]):
                pass


async def test_engines_with_models_of_different_names_each_get_their_own(endpoints: list[str]) -> None:
    options = [StubOptions(endpoint=each, name=name) for each, name in zip(endpoints, "ab", strict=False)]
    with running_stub(options[0]) as a, running_stub(options[1]) as b:
        async with replica_set(endpoints[:2]) as replicas:
            assert [model.name for model in replicas.models] == ["a", "b"]
            await asyncio.gather(*(collect(replicas, request(model=name)) for name in "aabbb"))
    assert (a.num_requests, b.num_requests) == (2, 3)


async def test_tenants_and_forbidden_sets_reach_all(endpoints: list[str], run_stubs: RunStubs) -> None:
    stubs = run_stubs()
    given = ForbidFor(ForbiddenSet((ForbiddenPattern(name="secret", regex="secret"),)), ("stub",))
    async with replica_set(endpoints) as replicas:
        await replicas.set_tenant(3, 2.0)
        await replicas.forbid([given])
        assert [stub.tenants for stub in stubs] == [{3: 2.0}] * 3
        assert [stub.forbidden for stub in stubs] == [{given.forbidden.digest}] * 3


async def test_what_one_refuses_none_keeps(endpoints: list[str], run_stubs: RunStubs) -> None:
    stubs = run_stubs()
    async with replica_set(endpoints) as replicas:
        await replicas.set_tenant(3, 2.0)
        told = EngineClient.set_tenant

        async def refuses(
            client: EngineClient, tenant: int, weight: float, *, kv_quota: float | None = None
        ) -> None:
            if client.endpoint == endpoints[1] and weight == 5.0:
                raise ConfigError("weight is 5", field="weight")
            await told(client, tenant, weight, kv_quota=kv_quota)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EngineClient, "set_tenant", refuses)
            with pytest.raises(ConfigError, match="weight is 5"):
                await replicas.set_tenant(3, 5.0)
            with pytest.raises(ConfigError, match="weight is 5"):
                await replicas.set_tenant(4, 5.0)
        assert [stub.tenants for stub in stubs] == [{3: 2.0, 4: 1.0}, {3: 2.0}, {3: 2.0, 4: 1.0}]


async def test_a_set_that_is_given_up_or_closed_ends_all(endpoints: list[str], run_stubs: RunStubs) -> None:
    run_stubs(step_us=1000)
    async with replica_set(endpoints) as replicas:
        stream = replicas.open(request(4000))
        await anext(stream)
        replicas.give_up(EngineDeadError("enough"))
        for later in (stream, replicas.open(request(4))):
            with pytest.raises(EngineDeadError, match="enough"):
                await collect_rest(later)
        assert replicas.dead is not None
    async with replica_set(endpoints) as replicas:
        stream = replicas.open(request(4000))
        await anext(stream)
        replicas.close()
        with pytest.raises(EngineDeadError, match="closed"):
            await collect_rest(stream)
        with pytest.raises(EngineDeadError):
            await collect(replicas, request(4))


async def collect_rest(stream: OutputStream) -> None:
    async for _ in stream:
        pass


def test_a_set_has_a_bounded_number_of_replicas() -> None:
    with pytest.raises(ConfigError, match="replicas is 0; accepted: from 1 to 64"):
        ReplicaSet([])
