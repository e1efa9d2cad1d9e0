"""Preemption for fairness: with a gap set, a head that does not fit takes the place of over-served tenants."""

from __future__ import annotations

import itertools
import random

import pytest

from airi import _core

from .harness import Config, Executor, ModelSpec
from .naive_parts import UNIT


class GapRun:
    """Tenants in bursts on a small cache; keeps, for each pair, how far apart they are and may be.

    Normalised as in the ledger: 2^20 units are one unit of service at weight 1.
    """

    def __init__(self, seed: int, gap: int | None, *, num_bands: int = 1) -> None:
        self.rng = random.Random(seed)
        self.num_bands = num_bands
        spec = ModelSpec(
            blocks=self.rng.randint(24, 60),
            max_model_len=96,
            max_num_seqs=self.rng.randint(2, 8),
            max_batch_tokens=96,  # for a block of everything that runs, in every step
            admission=self.rng.choice([_core.Admission.NO_EVICT, _core.Admission.MAX_UTIL]),
            prefix_caching=self.rng.random() < 0.5,
        )
        bypass = self.rng.choice([0, 100])
        config = Config(fairness_gap_tokens=gap, num_bands=num_bands, bypass_tokens=bypass)
        self.ex = Executor([spec], config)
        self.tenants = list(range(self.rng.randint(2, 4)))
        self.owner: dict[int, int] = {}
        self.allowed: dict[tuple[int, int], int] = {}
        self.largest_charge = 0
        self.worst_excess = 0

    def submit(self, tenant: int) -> None:
        size, new = self.rng.randint(1, 20), self.rng.randint(1, 60)
        band = self.rng.randrange(self.num_bands)
        self.owner[self.ex.accepted([tenant + 1] * size, max_new=new, tenant=tenant, band=band)] = tenant

    def counters(self) -> dict[int, int]:
        known = {t: self.ex.runtime.tenant_counter(0, 0, t) for t in self.tenants}
        return {t: c for t, c in known.items() if c is not None}

    def step(self) -> None:
        before = self.counters()
        planned = self.ex.plan()
        running = {row.request for row in planned.rows} if planned else set()
        self.note_charges(before)
        self.note_gaps(running)
        if planned is not None:
            self.ex.commit(planned)
        self.note_charges(before)

    def note_charges(self, before: dict[int, int]) -> None:
        for tenant, counter in self.counters().items():
            if tenant in before:
                self.largest_charge = max(self.largest_charge, counter - before[tenant])

    def note_gaps(self, running: set[int]) -> None:
        waiting = {t for r, t in self.owner.items() if r not in self.ex.finished and r not in running}
        counters = self.counters()
        for pair in itertools.combinations(self.tenants, 2):
            if not set(pair) <= waiting & counters.keys():
                self.allowed.pop(pair, None)
                continue
            gap = abs(counters[pair[0]] - counters[pair[1]])
            at_join = self.allowed.setdefault(pair, gap)
            limit = max(at_join, (self.ex.config.fairness_gap_tokens or 0) * UNIT + self.largest_charge)
            self.worst_excess = max(self.worst_excess, gap - limit)

    def run(self, ticks: int) -> None:
        for tick in range(ticks):
            for tenant in self.tenants:
                if (tick // 40 + tenant) % 2 == 0 and self.rng.random() < 0.4:
                    self.submit(tenant)
            self.step()
            self.ex.runtime.check_invariants()
        self.ex.run()


@pytest.mark.parametrize("seed", range(20))
def test_with_a_gap_set_no_backlogged_tenant_leads_another_by_more(seed: int) -> None:
    """Beyond the gap at the later join: at most the gap and the largest charge of one step."""
    run = GapRun(seed, 40)
    run.run(300)
    assert run.worst_excess <= 0
    assert run.ex.runtime.stats()[0].active_blocks == 0


def test_the_gap_holds_however_often_a_request_was_preempted() -> None:
    """One slot, two tenants with long requests: they take turns, far more often than max_preemptions."""
    ex = Executor([ModelSpec(max_num_seqs=1, max_model_len=600, blocks=150)], Config(fairness_gap_tokens=20))
    for tenant in range(2):
        for _ in range(2):
            ex.accepted([tenant + 1], tenant=tenant, max_new=250)
    leads = []
    while not ex.finished:
        ex.step()
        counters = [ex.runtime.tenant_counter(0, 0, tenant) or 0 for tenant in range(2)]
        leads.append(abs(counters[0] - counters[1]))
    assert ex.runtime.stats()[0].preemptions > ex.config.max_preemptions * 4
    assert max(leads) <= (20 + 2) * UNIT
    ex.run()


def test_without_a_gap_what_already_runs_is_left_alone() -> None:
    """Negative: plain admission exceeds what the gap of zero would allow."""
    runs = [GapRun(seed, None) for seed in range(5)]
    for run in runs:
        run.run(300)
    assert any(run.worst_excess > 40 * UNIT for run in runs)


@pytest.mark.parametrize("seed", range(10))
def test_no_step_preempts_a_tenant_for_the_gap_and_admits_it_again(seed: int) -> None:
    """R4, with bands as well."""
    run = GapRun(seed, 10, num_bands=2)
    preempted_before = 0
    for tick in range(300):
        for tenant in run.tenants:
            if (tick // 40 + tenant) % 2 == 0 and run.rng.random() < 0.4:
                run.submit(tenant)
        ran = {r.request for r in run.ex.steps[-1].rows} if run.ex.steps else set()
        planned = run.ex.plan()
        if planned is None:
            continue
        preempted = run.ex.runtime.stats()[0].preemptions
        if preempted > preempted_before and planned.info.num_rows > 0:
            again = {r.request for r in planned.rows if r.first and r.request in ran}
            assert not again, "preempted and readmitted by one step"
        preempted_before = preempted
        run.ex.commit(planned)
    assert preempted_before > 0
    run.ex.run()


def test_a_flooder_gives_way_to_who_comes_later() -> None:
    """Every slot is taken by long requests of one tenant: the other waits no longer than the gap lasts."""
    ex = Executor([ModelSpec(max_num_seqs=2, blocks=64)], Config(fairness_gap_tokens=20))
    for _ in range(8):
        ex.accepted([1, 2], tenant=0, max_new=50)
    ex.step()
    late = ex.accepted([3, 4], tenant=1, max_new=4)
    for _ in range(20):
        ex.step()
    assert late in ex.finished
    ex.run()
    assert set(ex.finished.values()) == {_core.FinishReason.LENGTH}


@pytest.mark.parametrize("gap", [0, -1, 2**41])
def test_a_gap_out_of_range_is_refused(gap: int) -> None:
    with pytest.raises(ValueError, match=r"fairness_gap_tokens must be between 1 and 2\^40"):
        Executor(config=Config(fairness_gap_tokens=gap))
