"""Q1: a tenant under its occupancy quota never loses a block to one over quota; and everybody is served."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from airi import _core
from airi._core import Admission, Admit, Decision, FinishReason, parts

from .harness import Config, Executor, ModelSpec

TENANTS = (0, 1, 2, 3)
BLOCK_SIZE = 4


class NaivePool:
    """Owners, promises and one list in order of release; everything else is counted anew at every question."""

    def __init__(self, capacity: int) -> None:
        self.free = list(range(capacity))[::-1]
        self.cached: list[int] = []
        self.owner: dict[int, int] = {}
        self.promised: Counter[int] = Counter()
        self.wanted: dict[int, int] = {}
        self.quota: dict[int, int] = {}

    def cached_of(self, tenant: int) -> list[int]:
        return [b for b in self.cached if self.owner.get(b) == tenant]

    def evictable(self, tenant: int) -> int:
        owned = sum(t == tenant for t in self.owner.values())
        return min(len(self.cached_of(tenant)), max(0, owned - self.quota[tenant]))

    def protected(self, tenant: int) -> int:
        return len(self.cached_of(tenant)) - self.evictable(tenant) if tenant in self.quota else 0

    def spare(self) -> int:
        """What is left when all promises are kept: sum of max(0, O_t - P_t) <= FREE + unprotected CACHED."""
        unprotected = len(self.cached) - sum(map(self.protected, self.quota))
        tenants = {*self.quota, *self.promised}
        owed = sum(max(0, self.promised[t] - self.protected(t)) for t in tenants)
        return len(self.free) + unprotected - owed

    def headroom(self, tenant: int) -> int:
        return self.spare() + max(0, self.protected(tenant) - self.promised[tenant])

    def settle(self) -> None:
        for tenant, wanted in self.wanted.items():
            while self.quota[tenant] < wanted:
                self.quota[tenant] += 1
                if self.spare() < 0:
                    self.quota[tenant] -= 1
                    break

    def may_take(self, tenant: int) -> set[int]:
        """The blocks that the tenant's next one may be: FREE, or the oldest that is not another's to keep."""
        if self.spare() > 0 and self.free:
            return set(self.free)
        own_only = self.spare() <= 0
        for block in self.cached:
            owner = self.owner.get(block)
            if owner == tenant and tenant in self.quota:
                return {block}
            if not own_only and (owner is None or self.evictable(owner) > 0):
                return {block}
        return set()

    def take(self, tenant: int, block: int) -> None:
        if block in self.free:
            self.free.remove(block)
        else:
            self.cached.remove(block)
            self.owner.pop(block, None)
        if tenant in self.quota:
            self.owner[block] = tenant


def _step(
    rng: random.Random, pool: parts.BlockPool, naive: NaivePool, tables: list[tuple[list[int], int]]
) -> None:
    """One random operation on both; a table is its blocks and how many of them are published."""
    tenant = rng.choice(TENANTS)
    action = rng.random()
    if action < 0.08:
        blocks = rng.randint(0, 14)
        quotas = {**naive.wanted, tenant: blocks}
        if tenant > 0 and sum(quotas.values()) <= 24:
            pool.set_quota(tenant, blocks)
            naive.wanted[tenant] = blocks
            naive.quota[tenant] = min(naive.quota[tenant], blocks)
    elif action < 0.3:
        count = rng.randint(1, 6)
        if count <= naive.headroom(tenant):
            pool.promise(tenant, count)
            naive.promised[tenant] += count
    elif action < 0.75:
        promised = naive.promised[tenant] > 0 and rng.random() < 0.8
        if promised:
            pool.promise(tenant, -1)
            naive.promised[tenant] -= 1
        possible = naive.may_take(tenant) if naive.headroom(tenant) > 0 else set()
        taken = pool.take_for(tenant, naive.promised.total(), 1)
        assert (taken is None) == (not possible)
        assert taken is not None or not promised, "a promise is kept"
        if taken is not None:
            assert taken[0] in possible
            naive.take(tenant, taken[0])
            tables.append((taken, 0))
    elif tables:
        table, _ = tables.pop(rng.randrange(len(tables)))
        if rng.random() < 0.7:
            pool.publish(table[0], 0, (rng.getrandbits(60), 1), [table[0]] * BLOCK_SIZE)
            naive.cached.append(table[0])
        else:
            naive.free.append(table[0])
            naive.owner.pop(table[0], None)
        pool.release(table)


@pytest.mark.parametrize("seed", range(12))
def test_a_pool_with_quotas_takes_what_the_naive_one_allows_and_keeps_every_promise(seed: int) -> None:
    rng = random.Random(seed)
    pool, naive = parts.BlockPool(30, BLOCK_SIZE), NaivePool(30)
    for tenant in TENANTS[1:]:  # what a tenant is promised before its first quota is not its group's
        pool.set_quota(tenant, 0)
        naive.wanted[tenant] = naive.quota[tenant] = 0
    tables: list[tuple[list[int], int]] = []
    seen_protected = 0
    for _ in range(1500):
        _step(rng, pool, naive, tables)
        naive.settle()
        pool.settle_quotas(naive.promised.total())
        pool.check_invariants()
        assert naive.spare() >= 0
        assert (pool.num_free, pool.num_cached) == (len(naive.free), len(naive.cached))
        assert pool.num_free + pool.num_cached - naive.promised.total() - pool.num_idle == naive.spare()
        for tenant, quota in naive.quota.items():
            owned = sum(t == tenant for t in naive.owner.values())
            counted = (quota, owned, len(naive.cached_of(tenant)), naive.protected(tenant))
            assert pool.quota_of(tenant) == counted
            seen_protected += counted[3]
    assert seen_protected > 0


def spec(**changes: object) -> ModelSpec:
    made = ModelSpec(blocks=40, block_size=BLOCK_SIZE, max_model_len=64, max_num_seqs=4, max_batch_tokens=32)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def hits_of_one_beside_a_flooder(quota: int | None) -> list[int]:
    """A tenant sends the same prompt of ten blocks now and then; another fills the cache in between."""
    ex = Executor([spec()])
    if quota is not None:
        ex.runtime.set_kv_quota(1, 0, quota)
    hits = []
    for turn in range(5):
        mine = ex.accepted([1] * 41, tenant=1, max_new=1)
        ex.run()
        hits.append(int(ex.events[mine]["num_cached_tokens"]))
        for i in range(12):
            ex.accepted([100 * turn + i + 2] * 30, tenant=2, max_new=4)
        ex.run()
        ex.runtime.check_invariants()
    return hits


def test_within_its_quota_a_tenant_keeps_its_cache_beside_a_flooder() -> None:
    assert hits_of_one_beside_a_flooder(11) == [0, 40, 40, 40, 40]
    assert hits_of_one_beside_a_flooder(None) == [0] * 5
    assert hits_of_one_beside_a_flooder(0) == [0] * 5


def test_beyond_its_quota_a_tenant_loses_what_it_used_longest_ago() -> None:
    assert hits_of_one_beside_a_flooder(6) == [0, 24, 24, 24, 24]


def random_run(seed: int, *, quotas: bool, gap: int | None = None) -> Executor:
    """Tenants whose prompts overlap, some with quotas that change; every step is checked."""
    rng = random.Random(seed)
    ex = Executor(
        [
            spec(
                admission=rng.choice([Admission.MAX_UTIL, Admission.NO_EVICT]),
                watermark=rng.choice([0.0, 0.1]),
            )
        ],
        Config(
            num_bands=2, bypass_tokens=rng.choice([0, 60]), fairness_gap_tokens=gap, decision_records=1 << 14
        ),
    )
    for i in range(80):
        if quotas and i % 9 == 0:
            ex.runtime.set_kv_quota(rng.choice(TENANTS[1:]), 0, rng.randint(0, 7))
        prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, 40))]
        ex.accepted(prompt, max_new=rng.randint(1, 20), tenant=rng.choice(TENANTS), band=rng.randrange(2))
        for _ in range(rng.randint(0, 3)):
            ex.step()
            ex.runtime.check_invariants()
        if rng.random() < 0.1:
            ex.runtime.cancel(rng.randint(0, i))
    while ex.runtime.has_work():
        ex.step()
        ex.runtime.check_invariants()
    return ex


@pytest.mark.parametrize("gap", [None, 50])
@pytest.mark.parametrize("seed", range(10))
def test_with_quotas_that_change_every_promise_is_kept_and_every_request_ends(
    seed: int, gap: int | None
) -> None:
    ex = random_run(seed, quotas=True, gap=gap)
    assert len(ex.finished) == 80
    assert FinishReason.NEVER_FITS not in ex.finished.values()


def test_some_request_waits_for_quotas_and_says_so() -> None:
    codes = Counter[int]()
    for seed in range(10):
        codes.update(random_run(seed, quotas=True).runtime.read_decisions(0, 1 << 14)[0]["decision"].tolist())
    assert codes[Decision.QUEUED_QUOTA] > 0


def test_what_cannot_fit_beside_the_quotas_of_others_is_refused() -> None:
    ex = Executor([spec(blocks=20)], Config(decision_records=64))
    ex.runtime.set_kv_quota(1, 0, 12)
    assert ex.submit([1] * 30, max_new=3, tenant=2)[1] == Admit.NEVER_FITS
    ex.step()
    assert ex.runtime.read_decisions(0)[0][["decision", "a", "b"]].tolist() == [
        (Decision.REFUSED_NEVER_FITS, 9, 8)
    ]
    ex.accepted([1] * 29, max_new=3, tenant=2)
    ex.accepted([1] * 60, max_new=3, tenant=1)
    clamped = ex.accepted([1] * 20, max_new=None, tenant=2)
    ex.run()
    assert len(ex.outputs[clamped]) == 12


def test_a_quota_set_later_ends_what_could_wait_for_ever() -> None:
    ex = Executor([spec(blocks=20)])
    running, waiting = (ex.accepted([i] * 40, max_new=20, tenant=2) for i in (1, 2))
    ex.step()
    ex.runtime.set_kv_quota(1, 0, 12)
    small = ex.accepted([3] * 10, max_new=3, tenant=2)
    ex.run()
    assert [ex.finished[r] for r in (running, waiting)] == [FinishReason.NEVER_FITS] * 2
    assert ex.finished[small] == FinishReason.LENGTH


def test_what_passes_from_one_tenants_quota_to_anothers_ends_what_it_had_room_for() -> None:
    """What is kept in all stays the same, but not what is kept for others than the first tenant."""
    ex = Executor([spec(blocks=20)])
    ex.runtime.set_kv_quota(1, 0, 12)
    first, other = ex.accepted([1] * 50, max_new=10, tenant=1), ex.accepted([2] * 20, max_new=10, tenant=3)
    ex.step()
    ex.runtime.set_kv_quota(1, 0, 0)
    ex.runtime.set_kv_quota(2, 0, 12)
    late = ex.accepted([3] * 4, max_new=2, tenant=2)
    ex.run()
    assert ex.finished == {
        first: FinishReason.NEVER_FITS,
        other: FinishReason.LENGTH,
        late: FinishReason.LENGTH,
    }
    ex.runtime.set_kv_quota(2, 0, 0)
    again = ex.accepted([1] * 50, max_new=10, tenant=1)
    ex.run()
    assert ex.finished[again] == FinishReason.LENGTH


def test_a_quota_that_ends_leaves_its_place_to_another_tenant() -> None:
    """Also while its requests run; what it had is then anybody's."""
    ex = Executor([spec(blocks=100, admission=Admission.MAX_UTIL)])
    for turn in range(5):
        for tenant in range(100 * turn, 100 * turn + 64):
            ex.runtime.set_kv_quota(tenant, 0, 1 if tenant % 100 else 8)
        kept = ex.accepted([1 + turn] * 25, tenant=100 * turn, max_new=2)
        ex.run()
        running = ex.accepted([50 + turn] * 20, tenant=100 * turn, max_new=8)
        ex.step()
        for tenant in range(100 * turn, 100 * turn + 64):
            ex.runtime.set_kv_quota(tenant, 0, 0)
        ex.step()
        ex.runtime.check_invariants()
        large = ex.accepted([90 + turn] * 60, tenant=1000, max_new=4)
        while ex.runtime.has_work():
            ex.step()
            ex.runtime.check_invariants()
        assert {ex.finished[r] for r in (kept, running, large)} == {FinishReason.LENGTH}


def test_quotas_of_no_blocks_change_no_plan() -> None:
    for seed in range(6):
        plain = random_run(seed, quotas=False)
        rng = random.Random(seed)
        admission, watermark = rng.choice([Admission.MAX_UTIL, Admission.NO_EVICT]), rng.choice([0.0, 0.1])
        again = Executor(
            [spec(admission=admission, watermark=watermark)],
            Config(num_bands=2, bypass_tokens=rng.choice([0, 60]), decision_records=1 << 14),
        )
        for tenant in TENANTS[1:]:
            again.runtime.set_kv_quota(tenant, 0, 0)
        for i in range(80):
            prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, 40))]
            again.accepted(
                prompt, max_new=rng.randint(1, 20), tenant=rng.choice(TENANTS), band=rng.randrange(2)
            )
            for _ in range(rng.randint(0, 3)):
                again.step()
            if rng.random() < 0.1:
                again.runtime.cancel(rng.randint(0, i))
        again.run()
        assert [(s.now, s.rows, s.deltas) for s in again.steps] == [
            (s.now, s.rows, s.deltas) for s in plain.steps
        ]


def test_a_quota_that_cannot_be_is_refused() -> None:
    runtime = Executor().runtime
    with pytest.raises(ValueError, match="a quota must be at least 0 blocks, got -1"):
        runtime.set_kv_quota(1, 0, -1)
    with pytest.raises(ValueError, match="model must be a model of this runtime, got 1"):
        runtime.set_kv_quota(1, 1, 1)
    for tenant in range(64):
        runtime.set_kv_quota(tenant, 0, 1)
    with pytest.raises(ValueError, match="at most 64 tenants of a model can have a quota"):
        runtime.set_kv_quota(64, 0, 1)
    runtime.set_kv_quota(7, 0, 0)
    runtime.set_kv_quota(64, 0, 1)
    assert isinstance(runtime, _core.Runtime)
