"""T1, T3: copies in host memory and on disk, against a cache of lists; operations run on stand-in bytes."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airi._core import MemoryOpKind
from airi._core.parts import TierCache, TierSource, TransferEnd

from .naive_tiers import Copy, NaiveTiers, Op

ENTRIES = 8
BLOCKS = 3
GRANULES = 2
RATES = [1000.0] * 5


class TierMachine(RuleBasedStateMachine):
    """What a scheduler may ask for, in any order, while transfers take as long as they like."""

    @initialize(host=st.integers(0, 5), disk=st.integers(0, 4), on_reuse=st.integers(0, 2))
    def start(self, host: int, disk: int, on_reuse: int) -> None:
        self.tiers = TierCache(
            entries=ENTRIES,
            blocks=BLOCKS,
            host=host,
            disk=disk,
            granules=GRANULES,
            store_on_reuse=on_reuse,
            rates=RATES,
        )
        self.naive = NaiveTiers(host, disk, GRANULES, on_reuse)
        self.memory: dict[tuple[str, int], int] = {}
        self.running: dict[int, tuple[MemoryOpKind, tuple[str, int], tuple[str, int], int]] = {}
        self.seen = 0
        self.pins: list[tuple[tuple[int, int], Copy]] = []
        self.begin_step(capacity=4)

    @rule(capacity=st.integers(0, 4))
    def begin_step(self, capacity: int) -> None:
        self.tiers.begin_step(capacity)
        self.naive.begin_step(capacity)
        self.seen = 0
        self.execute()

    def execute(self) -> None:
        """Begins what is new in the step. What is read must be what the transfer is for (T1)."""
        ops: list[Op] = self.tiers.ops()
        assert ops == self.naive.step
        places = {
            MemoryOpKind.STORE: ("device", "host"),
            MemoryOpKind.LOAD: ("host", "device"),
            MemoryOpKind.SPILL: ("host", "disk"),
            MemoryOpKind.FETCH: ("disk", "host"),
        }
        for kind, transfer, source, to, _ in ops[self.seen :]:
            from_place, to_place = places[kind]
            pending = self.naive.pending[transfer]
            entry = pending.host.entry
            busy = {(from_place, source), (to_place, to)}
            for other, origin, target, _ in self.running.values():
                readers = {other, kind} <= {MemoryOpKind.LOAD, MemoryOpKind.SPILL}
                shared = busy & {origin, target} - {p for p in busy if p[0] == "device"}
                assert not shared or (readers and shared == {(from_place, source)}), "T1: a slot in use"
            content = self.memory.get((from_place, source), -1)
            if entry is not None and from_place != "device":
                assert content == entry, "T1: it reads what has not been written"
            self.running[transfer] = (kind, (from_place, source), (to_place, to), content)
            if from_place == "device":
                assert entry is not None
                self.running[transfer] = (kind, (from_place, source), (to_place, to), entry)
        self.seen = len(ops)

    @rule(entry=st.integers(0, ENTRIES - 1), block=st.integers(0, BLOCKS - 1))
    def store(self, entry: int, block: int) -> None:
        assert self.tiers.store(entry, block) == self.naive.store(entry, block)
        self.execute()

    @rule(entry=st.integers(0, ENTRIES - 1), block=st.integers(0, BLOCKS - 1))
    def reuse(self, entry: int, block: int) -> None:
        self.tiers.on_reuse(entry, block)
        self.naive.on_reuse(entry, block)
        self.execute()

    @rule(entry=st.integers(0, ENTRIES - 1), block=st.integers(0, BLOCKS - 1))
    def read(self, entry: int, block: int) -> None:
        source = self.tiers.source(entry)
        if source == TierSource.HOST:
            assert self.tiers.load(entry, block) == self.naive.load(entry, block)
        elif source == TierSource.DISK:
            assert self.tiers.fetch(entry) == self.naive.fetch(entry)
        self.execute()

    @rule(entry=st.integers(0, ENTRIES - 1))
    def pin(self, entry: int) -> None:
        copy = self.naive.host.of(entry)
        if copy is not None:
            copy.pins += 1
            self.pins.append((self.tiers.pin(entry), copy))

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 10))
    def unpin(self, which: int) -> None:
        pin, copy = self.pins.pop(which % len(self.pins))
        self.tiers.unpin(pin)
        if copy in self.naive.host.copies and copy.pins > 0:
            copy.pins -= 1
            if copy.idle():
                self.naive.host.settle(copy)

    @rule()
    def spill(self) -> None:
        self.tiers.spill_oldest()
        self.naive.spill_oldest()
        self.execute()

    @rule(entry=st.integers(0, ENTRIES - 1))
    def forget(self, entry: int) -> None:
        self.tiers.forget(entry)
        self.naive.forget(entry)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10), ok=st.sampled_from([True, True, True, False]))
    def complete(self, which: int, ok: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        transfer = sorted(self.running)[which % len(self.running)]
        _, _, target, content = self.running.pop(transfer)
        self.memory[target] = content if ok else -1
        end = TransferEnd.DONE if ok else TransferEnd.FAILED
        assert self.tiers.complete(transfer, end, 20) == self.naive.complete(transfer, end)
        assert self.tiers.complete(transfer, end, 20) is None, "reported twice"

    @precondition(lambda self: self.naive.waiting)
    @rule()
    def cancel_what_waits(self) -> None:
        transfer = self.naive.waiting.pop(0)[1]
        assert self.tiers.cancel_waiting(transfer)
        cancelled = TransferEnd.CANCELLED
        assert self.tiers.complete(transfer, cancelled, 0) == self.naive.complete(transfer, cancelled)

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "tiers"):
            return
        self.tiers.check_invariants()
        assert self.tiers.take_lost() == self.naive.lost
        self.naive.lost.clear()
        for entry in range(ENTRIES):
            assert self.tiers.source(entry) == self.naive.source(entry)
            assert self.tiers.keeps(entry) == self.naive.keeps(entry)
            copy = self.naive.host.of(entry)
            if copy and copy.ready:
                assert self.memory[("host", copy.slot * GRANULES)] == entry, "T4"
        assert self.tiers.num_free == (len(self.naive.host.free), len(self.naive.disk.free)), "T3"
        assert self.tiers.num_pending == len(self.naive.pending)

    def teardown(self) -> None:
        if not hasattr(self, "tiers"):
            return
        while self.naive.waiting or self.running:
            while self.running:
                self.complete(which=0, ok=True)
            self.begin_step(capacity=4)
        for entry in range(ENTRIES):
            self.tiers.forget(entry)
        assert self.tiers.num_free == (self.naive.host_slots, self.naive.disk_slots), "a slot leaks"


TestTierMachine = TierMachine.TestCase
TestTierMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def make_tiers(*, host: int = 4, disk: int = 0, rate: float = 8192.0) -> TierCache:
    tiers = TierCache(
        entries=64, blocks=4, host=host, disk=disk, granules=2, store_on_reuse=2, rates=[rate] * 5
    )
    tiers.begin_step(16)
    return tiers


def test_a_block_is_stored_on_its_second_reuse() -> None:
    tiers = make_tiers()
    tiers.on_reuse(0, 1)
    assert tiers.ops() == []
    tiers.on_reuse(0, 1)
    assert tiers.ops() == [(MemoryOpKind.STORE, 1, 2, 0, 2)]
    tiers.on_reuse(0, 1)
    assert len(tiers.ops()) == 1


def test_what_leaves_the_host_is_on_disk_before() -> None:
    tiers = make_tiers(host=2, disk=2)
    for entry in (0, 1):
        tiers.store(entry, entry)
    for transfer in (1, 2):
        tiers.complete(transfer, TransferEnd.DONE, 10)
    tiers.begin_step(4)
    tiers.spill_oldest()
    assert [op[0] for op in tiers.ops()] == [MemoryOpKind.SPILL]
    tiers.complete(3, TransferEnd.DONE, 10)
    tiers.store(2, 2)
    assert tiers.source(0) == TierSource.DISK
    assert tiers.take_lost() == []


def test_a_full_step_drops_stores_and_keeps_loads_for_later() -> None:
    tiers = make_tiers()
    tiers.store(0, 0)
    tiers.complete(1, TransferEnd.DONE, 10)
    tiers.begin_step(0)
    assert not tiers.store(1, 1)
    load = tiers.load(0, 2)
    assert tiers.ops() == []
    tiers.begin_step(1)
    assert [op[:2] for op in tiers.ops()] == [(MemoryOpKind.LOAD, load)]


def test_estimates_count_the_queue_and_follow_what_transfers_took() -> None:
    tiers = make_tiers()
    one = tiers.estimate(MemoryOpKind.STORE, 1)
    assert one == pytest.approx(8192 / 8192)
    tiers.store(0, 0)
    assert tiers.estimate(MemoryOpKind.STORE, 1) == pytest.approx(2 * one)
    tiers.complete(1, TransferEnd.DONE, 101)
    assert tiers.estimate(MemoryOpKind.STORE, 1) == pytest.approx(1 + 0.1 * (101 - 1))
    tiers.store(1, 1)
    tiers.complete(2, TransferEnd.FAILED, 100_000)
    assert tiers.estimate(MemoryOpKind.STORE, 1) == pytest.approx(11), "a failure says nothing about speed"
    for _ in range(500):
        tiers.forget_some(MemoryOpKind.STORE)
    assert tiers.estimate(MemoryOpKind.STORE, 1) == pytest.approx(one, rel=0.01)


def test_a_rate_of_zero_never_arrives() -> None:
    tiers = make_tiers(rate=0.0)
    assert math.isinf(tiers.estimate(MemoryOpKind.LOAD, 1))
    tiers.store(0, 0)
    tiers.complete(1, TransferEnd.DONE, 1)
    assert math.isinf(tiers.estimate(MemoryOpKind.STORE, 1))


def test_failing_spills_are_tried_less() -> None:
    tiers = make_tiers(host=64, disk=64)
    for entry in range(64):
        tiers.store(entry, 0)
        tiers.begin_step(16)
    for transfer in range(1, 65):
        tiers.complete(transfer, TransferEnd.DONE, 10)
    tiers.begin_step(100)
    tiers.spill_oldest()
    spills = [op[1] for op in tiers.ops()]
    assert len(spills) == 8, "an eighth of the host"
    for transfer in spills:
        tiers.complete(transfer, TransferEnd.FAILED, 10)
    tiers.begin_step(100)
    tiers.spill_oldest()
    assert len(tiers.ops()) == 1
    assert tiers.source(0) == TierSource.HOST, "a full disk costs no copy in the host"


def failed(kind: MemoryOpKind) -> tuple[TierCache, list[int]]:
    """A cache in which entry 0 has been through all kinds of operation up to `kind`, which failed; what it lost."""
    tiers = make_tiers(host=1, disk=1)
    done, bad = TransferEnd.DONE, TransferEnd.FAILED
    tiers.store(0, 0)
    tiers.complete(1, bad if kind == MemoryOpKind.STORE else done, 10)
    if kind == MemoryOpKind.LOAD:
        tiers.complete(tiers.load(0, 1), bad, 10)
    if kind in (MemoryOpKind.SPILL, MemoryOpKind.FETCH):
        tiers.spill_oldest()
        tiers.complete(2, bad if kind == MemoryOpKind.SPILL else done, 10)
    if kind == MemoryOpKind.FETCH:
        tiers.store(1, 1)  # takes the only slot of the host
        tiers.complete(3, done, 10)
        fetch = tiers.fetch(0)
        assert fetch is not None
        tiers.complete(fetch, bad, 10)
    tiers.check_invariants()
    return tiers, tiers.take_lost()


@pytest.mark.parametrize(
    ("kind", "left", "lost"),
    [
        (MemoryOpKind.STORE, TierSource.NONE, [0]),
        (MemoryOpKind.LOAD, TierSource.NONE, [0]),
        (MemoryOpKind.SPILL, TierSource.HOST, []),
        (MemoryOpKind.FETCH, TierSource.NONE, [1, 0]),
    ],
)
def test_what_could_not_be_read_or_written_is_not_tried_again(
    kind: MemoryOpKind, left: TierSource, lost: list[int]
) -> None:
    """T2 for every kind of operation: a copy that is not there, or cannot be read, is forgotten; others stay."""
    tiers, gone = failed(kind)
    assert tiers.source(0) == left
    assert gone == lost
    assert tiers.num_pending == 0
    assert tiers.store(0, 2), "it may be stored anew"
