"""A set whose replicas die, drain and come back: nothing is lost without a word."""

from __future__ import annotations

import asyncio
import random
import subprocess
from functools import partial

import pytest

from airi.engine.options import ModelOptions
from airi.errors import AiriError, ConfigError, EngineDeadError
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.routing import ReplicaSet
from airi.routing.wanted import Wanted
from airi.transport import ForbidFor, GenerateRequest, Output, OutputStream
from airi.transport.stub import StubOptions
from tests.transport.calls import collect, request
from tests.transport.conftest import running_stub

from .conftest import StartStub, prompt_of, replica_set


async def ended(stream: OutputStream) -> Output | AiriError:
    """All outputs of a stream as one, or what it ended with."""
    whole: Output | None = None
    try:
        async for output in stream:
            if whole is None:
                whole = output
            else:
                whole.merge(output)
    except AiriError as error:
        return error
    assert whole is not None
    return whole


async def down(replicas: ReplicaSet, *names: str) -> None:
    """Waits until the set knows that these are gone."""
    while any(replicas.replicas[int(name)].is_up for name in names):
        await asyncio.sleep(0.005)


async def test_a_killed_replica_ends_its_streams_and_no_others(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint, "--step-us", "2000") for endpoint in endpoints]
    async with replica_set(endpoints) as replicas:
        messages = [prompt_of(i, max_tokens=300) for i in range(30)]
        streams = [replicas.open(message) for message in messages]
        began = [await anext(stream) for stream in streams]
        of = [replicas.replica_of(message.request_id) for message in messages]
        processes[1].kill()
        ends = await asyncio.gather(*(ended(stream) for stream in streams))
        for name, first, end in zip(of, began, ends, strict=True):
            if name == "1":
                assert isinstance(end, EngineDeadError)
            else:
                assert isinstance(end, Output)
                assert len(first.tokens) + len(end.tokens) == 300
        assert 0 < of.count("1") < 30
        assert replicas.alive
        assert replicas.dead is None
        answers = await asyncio.gather(*(collect(replicas, prompt_of(i)) for i in range(50, 56)))
        assert [len(answer.tokens) for answer in answers] == [4] * 6


async def test_requests_that_had_not_started_are_answered_by_others(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint, "--step-us", "300000") for endpoint in endpoints[:2]]
    async with replica_set(endpoints[:2]) as replicas:
        started = [replicas.open(prompt_of(i, max_tokens=4000)) for i in (1, 2)]
        for stream in started:
            await anext(stream)  # each is in a step of 300 ms, and nothing else starts before its end
        messages = [prompt_of(10 + i, max_tokens=3) for i in range(8)]
        waiting = [replicas.open(message) for message in messages]
        of = [replicas.replica_of(message.request_id) for message in messages]
        await asyncio.sleep(0)
        processes[0].kill()
        ends = await asyncio.gather(*(ended(stream) for stream in waiting))
        assert [len(end.tokens) for end in ends if isinstance(end, Output)] == [3] * 8
        assert set(of) == {"0", "1"}
        assert {replicas.replica_of(message.request_id) for message in messages} == {"1"}
        decisions = [replicas.decision(message.request_id) for message in messages]
        lost = [() if name == "1" else ("0",) for name in of]
        assert [None if each is None else each.lost for each in decisions] == lost
        for stream in started:
            stream.close()


async def test_requests_wait_for_the_first_that_comes_back(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint) for endpoint in endpoints[:2]]
    async with replica_set(endpoints[:2]) as replicas:
        for process in processes:
            process.kill()
        await down(replicas, "0", "1")
        assert not replicas.alive
        assert [model.name for model in replicas.models] == ["stub"]
        cancelled, gone, late, kept = request(5), request(5), request(5), request(5)
        late.timeout_us = 1
        streams = [replicas.open(message) for message in (cancelled, gone, late, kept)]
        assert replicas.replica_of(kept.request_id) is None
        replicas.cancel(cancelled.request_id)
        streams[1].close()
        first = await ended(streams[0])
        assert isinstance(first, Output)
        assert first.finish_reason == "cancelled"
        assert replicas.num_running == 2
        start_stub(endpoints[1])
        assert len((await ended_well(streams[3])).tokens) == 5
        assert replicas.replica_of(kept.request_id) == "1"
        assert (await ended_well(streams[2])).finish_reason == "deadline"
        assert replicas.num_running == 0


async def ended_well(stream: OutputStream) -> Output:
    end = await ended(stream)
    assert isinstance(end, Output)
    return end


async def test_waiting_for_dead_replicas_is_bounded(endpoints: list[str], start_stub: StartStub) -> None:
    processes = [start_stub(endpoint) for endpoint in endpoints[:2]]
    async with replica_set(endpoints[:2], retry_window_s=0.2) as replicas:
        for process in processes:
            process.kill()
        await down(replicas, "0", "1")
        for _ in range(2):
            with pytest.raises(EngineDeadError, match=r"no replica has taken requests for 0\.2 s"):
                await collect(replicas, request(5))


async def test_a_replica_that_drains_gets_nothing_new_and_ends_what_it_has(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint, "--step-us", "2000") for endpoint in endpoints]
    async with replica_set(endpoints) as replicas:
        running = [replicas.open(prompt_of(i, max_tokens=200)) for i in range(12)]
        more: list[asyncio.Task[Output]] = []
        processes[2].terminate()
        while replicas.replicas[2].is_up:
            message = prompt_of(50 + len(more), max_tokens=2)
            more.append(asyncio.ensure_future(collect(replicas, message)))
            if not replicas.replicas[2].is_open:
                assert replicas.replica_of(message.request_id) != "2"
            await asyncio.sleep(0.002)
        ends = await asyncio.gather(*(ended(stream) for stream in running))
        assert [len(end.tokens) for end in ends if isinstance(end, Output)] == [200] * 12
        assert [len(answer.tokens) for answer in await asyncio.gather(*more)] == [2] * len(more)
        assert await asyncio.to_thread(processes[2].wait, 10) == 0


async def test_a_replica_that_comes_back_is_used_again_and_has_nothing_cached(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint) for endpoint in endpoints[:2]]
    async with replica_set(endpoints[:2]) as replicas:
        message = request(2, prompt=512)
        await collect(replicas, message)
        name = replicas.replica_of(message.request_id)
        assert name is not None
        processes[int(name)].kill()
        await down(replicas, name)
        processes[int(name)] = start_stub(endpoints[int(name)])
        while not replicas.replicas[int(name)].is_up:
            await asyncio.sleep(0.005)
        again = request(2, prompt=512)
        await collect(replicas, again)
        decision = replicas.decision(again.request_id)
        assert decision is not None
        assert {decision.names[each.replica]: each.cached_tokens for each in decision.choice.candidates} == {
            "0": 0,
            "1": 0,
        }
        used = set()
        for i in range(8):
            other = prompt_of(100 + i)
            await collect(replicas, other)
            used.add(replicas.replica_of(other.request_id))
        assert used == {"0", "1"}


async def test_a_request_that_two_replicas_died_of_is_not_sent_to_a_third(
    endpoints: list[str], start_stub: StartStub
) -> None:
    processes = [start_stub(endpoint, "--step-us", "400000") for endpoint in endpoints]
    async with replica_set(endpoints) as replicas:
        for i in range(3):
            await anext(replicas.open(prompt_of(100 + i, max_tokens=4000)))  # keeps each in a step of 400 ms
        message = request(3)
        stream = replicas.open(message)
        await asyncio.sleep(0)
        for _ in range(2):
            name = replicas.replica_of(message.request_id)
            assert name is not None
            processes[int(name)].kill()
            await down(replicas, name)
            await asyncio.sleep(0.01)
        end = await ended(stream)
        assert isinstance(end, EngineDeadError)
        assert "2 engine processes died" in str(end)


async def test_a_replica_that_comes_back_is_told_of_tenants_and_forbidden_sets(endpoints: list[str]) -> None:
    options = [StubOptions(endpoint=endpoint) for endpoint in endpoints[:2]]
    given = ForbidFor(ForbiddenSet((ForbiddenPattern(name="x", regex="x"),)), ("stub", "other"))
    with running_stub(options[0]):
        with running_stub(options[1]):
            async_set = replica_set(endpoints[:2])
            replicas = await async_set.__aenter__()
            await replicas.set_tenant(3, 2.0)
            await replicas.forbid([given])
        await down(replicas, "1")
        await replicas.set_tenant(4, 3.0)
        with running_stub(options[1]) as back:
            while not replicas.replicas[1].is_up:
                await asyncio.sleep(0.005)
            while back.forbidden != {given.forbidden.digest}:
                await asyncio.sleep(0.005)
            assert back.tenants == {3: 2.0, 4: 3.0}
            await async_set.__aexit__(None, None, None)


class FakeClient:
    """What `Wanted` does with an engine, without one."""

    def __init__(self, *names: str, fails: tuple[str, ...] = (), dead: bool = False) -> None:
        self.endpoint = "fake"
        self.start = set(names)
        self.names = set(names)
        self.asleep: set[str] = set()
        self.fails = fails
        self.dead = dead

    @property
    def models(self) -> list[ModelOptions]:
        return [ModelOptions(path=name, name=name) for name in sorted(self.names)]

    def _try(self, what: str) -> None:
        if self.dead:
            raise EngineDeadError("gone")
        if what in self.fails:
            raise ConfigError(f"cannot {what}")

    async def load(self, model: ModelOptions) -> None:
        self._try("load")
        self.names.add(model.name)

    async def unload(self, model: str, *, drains: bool = True) -> None:
        self._try("unload")
        self.names.discard(model)

    async def sleep(self, model: str) -> None:
        self._try("sleep")
        self.asleep.add(model)

    async def wake(self, model: str) -> None:
        self._try("wake")
        self.asleep.discard(model)


def wanted(*clients: FakeClient) -> Wanted:
    return Wanted(clients)  # type: ignore[arg-type]  # as far as it uses them


async def test_a_model_that_one_replica_cannot_load_is_on_none() -> None:
    clients = [FakeClient("a"), FakeClient("a", fails=("load",)), FakeClient("a")]
    of = wanted(*clients)
    with pytest.raises(ConfigError, match="cannot load"):
        await of.load(ModelOptions(path="b", name="b"))
    assert [client.names for client in clients] == [{"a"}] * 3
    clients[1].names = {"a"}
    await of.restore(clients[1])  # type: ignore[arg-type]
    assert clients[1].names == {"a"}


async def test_a_load_that_somebody_began_is_ended_by_the_next_one() -> None:
    clients = [FakeClient("a", "b", fails=("load",)), FakeClient("a")]
    of = wanted(*clients)
    with pytest.raises(ConfigError, match="cannot load"):
        await of.load(ModelOptions(path="other", name="b"))  # it has another model of this name
    await of.load(ModelOptions(path="b", name="b"))
    assert [client.names for client in clients] == [{"a", "b"}] * 2
    clients[0].names, clients[0].fails = {"a"}, ()
    await of.restore(clients[0])  # type: ignore[arg-type]
    assert clients[0].names == {"a", "b"}
    clients[1].names, clients[1].dead = {"a"}, True
    await of.load(ModelOptions(path="b", name="b"))  # who is not there gets it when it comes back
    clients[1].names, clients[1].dead = {"a", "b"}, False
    for client in clients:
        client.fails = ("load",)
    with pytest.raises(ConfigError, match="cannot load"):
        await of.load(ModelOptions(path="b", name="b"))


async def test_a_model_that_one_replica_cannot_send_to_sleep_is_awake_on_all() -> None:
    clients = [FakeClient("a"), FakeClient("a", fails=("sleep",))]
    with pytest.raises(ConfigError, match="cannot sleep"):
        await wanted(*clients).sleep("a")
    assert [client.asleep for client in clients] == [set(), set()]


async def test_a_replica_that_starts_again_gets_the_models_of_the_others() -> None:
    clients = [FakeClient("a", "old"), FakeClient("a", "old")]
    of = wanted(*clients)
    clients[1].dead = True
    await of.load(ModelOptions(path="b", name="b"))
    await of.unload("old", drains=True)
    await of.sleep("a")
    clients[1].dead = False
    assert clients[1].names == {"a", "old"}
    await of.restore(clients[1])  # type: ignore[arg-type]
    assert [client.names for client in clients] == [{"a", "b"}] * 2
    assert [client.asleep for client in clients] == [{"a"}] * 2
    await of.wake("a")
    await of.unload("b", drains=False)
    clients[0].names, clients[0].asleep = {"a", "old"}, set()
    await of.restore(clients[0])  # type: ignore[arg-type]
    assert clients[0].names == {"a"}
    assert clients[0].asleep == set()


async def test_what_no_replica_can_do_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    clients = [FakeClient("a", fails=("unload", "wake")), FakeClient("a", dead=True)]
    of = wanted(*clients)
    with pytest.raises(ConfigError, match="cannot unload"):
        await of.unload("a", drains=True)
    with pytest.raises(ConfigError, match="cannot wake"):
        await of.wake("a")
    clients[1].dead = False
    await of.wake("a")
    assert "did not wake a: cannot wake" in caplog.text
    for client in clients:
        client.dead = True
    with pytest.raises(EngineDeadError):
        await of.load(ModelOptions(path="b", name="b"))


async def test_random_deaths_under_streams_lose_nothing_silently(
    endpoints: list[str], start_stub: StartStub
) -> None:
    """Each request ends once: with its tokens, or, where it had begun, with an error; never with too few tokens."""
    draw = random.Random(7)
    processes: list[subprocess.Popen[str]] = [
        start_stub(endpoint, "--step-us", "1000") for endpoint in endpoints
    ]
    sent: list[tuple[GenerateRequest, asyncio.Task[Output | AiriError]]] = []
    async with replica_set(endpoints) as replicas:
        stopping = False

        async def send() -> None:
            while not stopping:
                message = prompt_of(draw.randrange(20), draw.randint(1, 200), draw.randint(1, 60))
                sent.append((message, asyncio.ensure_future(ended(replicas.open(message)))))
                await asyncio.sleep(0.003)

        sending = asyncio.ensure_future(send())
        for _ in range(6):
            await asyncio.sleep(draw.uniform(0.05, 0.3))
            victim = draw.randrange(3)
            if draw.random() < 0.6:
                processes[victim].kill()
            else:
                processes[victim].terminate()
            await asyncio.to_thread(processes[victim].wait, 30)
            processes[victim] = await asyncio.to_thread(
                partial(start_stub, endpoints[victim], "--step-us", "1000")
            )
        stopping = True
        await sending
        ends = await asyncio.gather(*(task for _, task in sent))
        assert replicas.num_running == 0
    errors = [end for end in ends if not isinstance(end, Output)]
    assert all(isinstance(error, EngineDeadError) and "while" in str(error) for error in errors)
    for (message, _), end in zip(sent, ends, strict=True):
        if isinstance(end, Output):
            assert len(end.tokens) == message.params.max_tokens
            assert end.finish_reason == "length"
    assert 0 < len(errors) < len(ends) / 2
