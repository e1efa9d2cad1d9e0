"""The whole runtime beside the naive scheduler, fed the same: every row, delta, slot and end must be the same."""

from __future__ import annotations

import random
from collections.abc import Callable

from airi import _core
from airi._core import Admission

from .harness import Config, Executor, ModelSpec, Step
from .naive import NaiveScheduler
from .naive_locality import NaiveLocalScheduler
from .naive_request import NaiveRequest, NaiveRow
from .naive_slo import SLO_COUNTERS

REASONS = {
    "stop": _core.FinishReason.STOP,
    "length": _core.FinishReason.LENGTH,
    "cancelled": _core.FinishReason.CANCELLED,
    "deadline": _core.FinishReason.DEADLINE,
    "failed": _core.FinishReason.FAILED,
    "nan": _core.FinishReason.NAN,
    "never fits": _core.FinishReason.NEVER_FITS,
}
Cost = Callable[[Step], int]


class Twin:
    """An Executor and one NaiveScheduler per model, fed the same."""

    def __init__(self, specs: list[ModelSpec], config: Config) -> None:
        self.ex = Executor(
            specs, config, rule=lambda request, draw, last: (last * 5 + draw) % 3, spare_deltas=4096
        )
        kind = NaiveScheduler if config.locality_quantum_tokens is None else NaiveLocalScheduler
        self.naive = [kind(spec, config) for spec in specs]
        self.live: dict[int, tuple[int, NaiveRequest]] = {}
        self.mail: list[NaiveRequest] = []
        self.cancels: list[int] = []
        self.weights: list[tuple[int, float]] = []
        self.quotas: list[tuple[int, int, int]] = []
        self.kept: list[dict[int, int]] = [{} for _ in specs]
        """By model and tenant: the quota that submit() knows of."""
        self.device_free = 0
        self.first_entry = [sum(s.blocks for s in specs[:i]) for i in range(len(specs))]

    def submit(
        self,
        text: list[int],
        *,
        model: int,
        tenant: int,
        band: int,
        max_new: int,
        min_new: int,
        stop: tuple[int, ...],
        salts: tuple[tuple[int, bytes], ...],
        deadline: int | None,
        arrival: int,
        compute_all: bool,
    ) -> None:
        request_id, admit = self.ex.submit(
            text,
            model=model,
            tenant=tenant,
            band=band,
            max_new=max_new,
            min_new=min_new,
            stop=stop,
            salts=salts,
            deadline=deadline,
            arrival=arrival,
            compute_all=compute_all,
        )
        total = len(text) + max_new
        assert admit == self.expected(model, tenant, total)
        if admit != _core.Admit.ACCEPTED:
            return
        request = NaiveRequest(
            id=request_id,
            tenant=tenant,
            first_band=band,
            arrival=arrival,
            deadline=deadline,
            text=list(text),
            prompt=len(text),
            max_length=total,
            min_length=len(text) + min(min_new, max_new),
            stop=stop,
            salts=salts,
            compute_all=compute_all,
        )
        self.live[request_id] = (model, request)
        self.mail.append(request)

    def expected(self, model: int, tenant: int, total: int) -> _core.Admit:
        """C6: what becomes of a request of `total` tokens."""
        spec = self.ex.specs[model]
        if total > spec.max_model_len:
            return _core.Admit.TOO_LONG
        kept = sum(blocks for other, blocks in self.kept[model].items() if other != tenant)
        fits = -(-total // spec.block_size) <= spec.blocks - kept
        return _core.Admit.ACCEPTED if fits else _core.Admit.NEVER_FITS

    def cancel(self, request_id: int) -> None:
        assert self.ex.runtime.cancel(request_id) == (request_id in self.live)
        if request_id in self.live:
            self.cancels.append(request_id)

    def set_tenant(self, tenant: int, weight: float) -> None:
        self.ex.runtime.set_tenant(tenant, weight)
        self.weights.append((tenant, weight))

    def set_quota(self, tenant: int, model: int, blocks: int) -> None:
        self.ex.runtime.set_kv_quota(tenant, model, blocks)
        self.quotas.append((tenant, model, blocks))
        self.kept[model][tenant] = blocks

    def read_mail(self) -> None:
        for tenant, weight in self.weights:
            for naive in self.naive:
                naive.weights[tenant] = weight
                for ledger in naive.ledgers:
                    if tenant in ledger.cost:
                        ledger.cost[tenant] = round((1 << 20) / weight)
        for tenant, model, blocks in self.quotas:
            of_tenant = [r for m, r in self.live.values() if (m, r.tenant) == (model, tenant)]
            self.naive[model].set_quota(tenant, blocks, of_tenant)
        for request in self.mail:
            self.naive[self.live[request.id][0]].push(request, request.arrival)
            self.drop_what_never_fits([request.id])
        for request_id in self.cancels:
            self.drop(request_id, "cancelled")
        if self.quotas:
            self.drop_what_never_fits(sorted(self.live))
        late = [(r.deadline, r.id) for _, r in self.live.values() if r.deadline is not None]
        for deadline, request_id in sorted(late):
            if deadline <= self.ex.now:
                self.drop(request_id, "deadline")
        self.weights, self.quotas, self.mail, self.cancels = [], [], [], []

    def drop_what_never_fits(self, requests: list[int]) -> None:
        for request_id in requests:
            model, request = self.live[request_id]
            if self.naive[model].never_fits(request):
                self.drop(request_id, "never fits")

    def drop(self, request_id: int, reason: str) -> None:
        if request_id in self.live:
            model, request = self.live[request_id]
            self.naive[model].end(request, reason)
            self.settle()

    def settle(self) -> None:
        for naive in self.naive:
            for request_id, _ in naive.ended:
                self.live.pop(request_id, None)

    def step(self, *, device_us: int | Cost = 100, failing: dict[int, int] | None = None) -> Step | None:
        self.read_mail()
        step = self.ex.plan()
        if step is None:
            assert not self.live
            self.check_ends()
            return None
        naive = self.naive[step.info.model]
        start = max(step.now, self.device_free)
        rows, deltas = naive.plan(step.now, start)
        if not rows and not deltas:  # a tenant made way for itself, and comes back at once
            rows, deltas = naive.plan(step.now, start)
        self.check_plan(step, rows, deltas)
        device_us = device_us if isinstance(device_us, int) else device_us(step)
        running = {row.request for row in step.rows}
        status = {r: s for r, s in (failing or {}).items() if r in running}
        before = {r: len(self.ex.outputs[r]) for r in running}
        self.ex.commit(step, device_us=device_us, status=status)
        tokens = {r: self.ex.outputs[r][-1] for r in running if len(self.ex.outputs[r]) > before[r]}
        self.device_free = max(self.device_free, step.now) + device_us
        naive.commit(rows, tokens, status, took=device_us, emitted=self.device_free)
        self.settle()
        self.check_ends()
        self.ex.runtime.check_invariants()
        return step

    def check_plan(self, step: Step, rows: list[NaiveRow], deltas: list[tuple[int, int, int]]) -> None:
        seen = [(r.request, r.slot, r.start, r.count, r.first) for r in step.rows]
        wanted = [(r.request.id, r.request.slot, r.request.computed, r.count, r.first) for r in rows]
        assert seen == wanted
        first = self.first_entry[step.info.model]
        assert step.deltas == [(slot, column, first + block) for slot, column, block in deltas]
        naive = self.naive[step.info.model]
        head = naive.head()
        if (
            head is not None
            and naive.slo.room(rows, naive.budget) >= naive.least(head)
            and naive.free_slots
            and not naive.barred(head)
            and not naive.dedupe.is_full()
        ):
            assert not naive.fits(head), "C4: tokens are left and the head fits, nor may it wait for a prefix"
        self.check_preemptions(naive, rows)
        decodes = [r for r in naive.decodes if not naive.slo.rests(r)]
        assert step.info.num_decodes == len(decodes), "C2"
        assert decodes or not naive.decodes, "all decodes sit out"

    def check_preemptions(self, naive: NaiveScheduler, rows: list[NaiveRow]) -> None:
        planned = [row.request for row in rows]
        for r in naive.admitted:
            assert r in planned, "admitted to a step that has no token for it"
            for victim, band in naive.preempted:
                same = (r.tenant, r.band) == (victim.tenant, band)
                assert not (same and r.key() >= victim.key()), "R4: preempted, and a later one admitted"

    def check_ends(self) -> None:
        ended = {i: REASONS[reason] for naive in self.naive for i, reason in naive.ended}
        assert self.ex.finished == ended
        for model, stats in enumerate(self.ex.runtime.stats()):
            naive = self.naive[model]
            assert stats.waiting == len(naive.waiting) + len(naive.dedupe.held)
            assert stats.dedupe_holds == naive.dedupe.holds
            assert stats.running == len(naive.decodes) + len(naive.prefills)
            assert stats.preemptions == naive.preempted_ever
            assert all(getattr(stats, name) == naive.slo.counts[name] for name in SLO_COUNTERS)
            assert stats.active_blocks == sum(r > 0 for r in naive.pool.refs), "B1, B7"
            assert stats.free_blocks + stats.cached_blocks == naive.pool.available()
            assert stats.cached_blocks == sum(naive.pool.refs[b] == 0 for b in naive.pool.key_of)


def random_spec(rng: random.Random) -> ModelSpec:
    if rng.random() < 0.15:
        return ModelSpec.whole(
            blocks=rng.randint(1, 12),
            max_model_len=rng.randint(40, 120),
            more_tokens=rng.choice([0, rng.randint(0, 120)]),
            max_num_seqs=rng.randint(1, 12),
            admission=rng.choice(list(Admission)),
        )
    return random_sharing_spec(rng)


def random_sharing_spec(rng: random.Random) -> ModelSpec:
    """Of a model whose prompts may be computed in parts."""
    block_size = rng.choice([1, 2, 4, 8])
    return ModelSpec(
        blocks=rng.randint(48, 160) // block_size,
        block_size=block_size,
        max_model_len=rng.randint(40, 120),
        max_num_seqs=rng.randint(2, 12),
        max_batch_tokens=rng.randint(1, 64),
        admission=rng.choice(list(Admission)),
        watermark=rng.choice([0.0, 0.05, 0.2]),
        prefix_caching=rng.random() < 0.8,
        max_prefill_chunk=rng.choice([None, block_size, 3 * block_size]),
    )


def random_config(rng: random.Random) -> Config:
    return Config(
        num_bands=rng.randint(1, 4),
        aging_us=rng.choice([None, 400, 3000]),
        w_prompt=rng.randint(0, 2),
        w_decode=rng.randint(1, 3),
        w_hit=rng.randint(0, 1),
        bypass_tokens=rng.choice([0, 40, 300]),
        max_preemptions=rng.randint(0, 4),
        fairness_gap_tokens=rng.choice([None, None, 1, 20, 150]),
        locality_quantum_tokens=rng.choice([None, None, 1, 30, 200, 1 << 40]),
        dedupe_steps=rng.choice([0, 1, 4, 50]),
        quantum_us=rng.choice([1, 300, 5000]),
        min_residency_us=rng.choice([0, 500]),
    )


def random_submit(rng: random.Random, twin: Twin) -> None:
    shared = [rng.randint(0, 1)] * rng.randint(0, 20)
    now = twin.ex.now
    twin.submit(
        shared + [rng.randint(0, 5) for _ in range(rng.randint(1, 12))],
        model=rng.randrange(len(twin.naive)),
        tenant=rng.choice([0, 0, 1, 2, 3, 4]),
        band=rng.randrange(twin.ex.config.num_bands),
        max_new=rng.choice([rng.randint(1, 10), rng.randint(1, 40)]),
        min_new=rng.choice([0, 0, 3]),
        stop=rng.choice([(), (0,)]),
        salts=rng.choice([(), (), ((0, b"x"),), ((9, b"x"), (20, b"y"))]),
        deadline=now + rng.randint(1, 4000) if rng.random() < 0.1 else None,
        arrival=max(now - rng.choice([0, 0, 500]), 0),
        compute_all=rng.random() < 0.1,
    )


def random_quota(rng: random.Random, twin: Twin) -> None:
    blocks = rng.choice([0, 0, 1, rng.randint(1, 6), rng.randint(1, 20)])
    twin.set_quota(rng.randint(0, 3), rng.randrange(len(twin.naive)), blocks)
