"""The whole runtime against the naive scheduler, for all that clients may do in any order."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airi._core import Admission

from .harness import Config, ModelSpec
from .twin import Twin, random_config, random_quota, random_spec, random_submit

specs = st.builds(
    ModelSpec,
    blocks=st.integers(4, 24),
    block_size=st.integers(1, 4),
    max_model_len=st.integers(8, 48),
    max_num_seqs=st.integers(1, 6),
    max_batch_tokens=st.integers(1, 24),
    admission=st.sampled_from(list(Admission)),
    watermark=st.sampled_from([0.0, 0.1, 0.3]),
    prefix_caching=st.sampled_from([True, True, False]),
    max_prefill_chunk=st.sampled_from([None, None, 4, 6]),
)
wholes = st.builds(
    ModelSpec.whole,
    blocks=st.integers(1, 8),
    max_model_len=st.integers(8, 32),
    more_tokens=st.integers(0, 24),
    max_num_seqs=st.integers(1, 6),
    admission=st.sampled_from(list(Admission)),
)
configs = st.builds(
    Config,
    num_bands=st.integers(1, 3),
    aging_us=st.sampled_from([None, 150, 1000]),
    w_prompt=st.integers(0, 2),
    w_decode=st.integers(1, 3),
    w_hit=st.integers(0, 1),
    bypass_tokens=st.sampled_from([0, 0, 20, 100]),
    max_preemptions=st.integers(0, 3),
    fairness_gap_tokens=st.sampled_from([None, 1, 8, 40]),
    locality_quantum_tokens=st.sampled_from([None, None, 1, 12, 60, 1 << 40]),
    dedupe_steps=st.sampled_from([0, 1, 3, 20]),
    quantum_us=st.sampled_from([1, 150]),
)
# Few tokens and salts: prefixes meet, and diverge late.
texts = st.lists(st.integers(0, 1), min_size=1, max_size=20)
salt_lists = st.lists(st.tuples(st.integers(0, 8), st.sampled_from([b"a", b"b"])), max_size=1).map(tuple)


class RuntimeMachine(RuleBasedStateMachine):
    """What any clients may do, in any order."""

    @initialize(models=st.lists(specs | wholes, min_size=1, max_size=2), config=configs)
    def start(self, models: list[ModelSpec], config: Config) -> None:
        self.twin = Twin(models, config)

    @rule(
        text=texts,
        where=st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 2)),
        max_new=st.integers(1, 8),
        min_new=st.integers(0, 3),
        stop=st.sampled_from([(), (), (0,), (0, 1)]),
        salts=salt_lists,
        deadline=st.sampled_from([None, None, None, 150, 900]),
        early=st.sampled_from([0, 0, 130]),
        compute_all=st.sampled_from([False, False, True]),
    )
    def submit(
        self,
        text: list[int],
        where: tuple[int, int, int],
        max_new: int,
        min_new: int,
        stop: tuple[int, ...],
        salts: tuple[tuple[int, bytes], ...],
        deadline: int | None,
        early: int,
        compute_all: bool,  # noqa: FBT001 - hypothesis passes it by name
    ) -> None:
        model, tenant, band = where
        now = self.twin.ex.now
        self.twin.submit(
            text,
            model=model % len(self.twin.naive),
            tenant=tenant,
            band=band % self.twin.ex.config.num_bands,
            max_new=max_new,
            min_new=min_new,
            stop=stop,
            salts=salts,
            deadline=None if deadline is None else now + deadline,
            arrival=max(now - early, 0),
            compute_all=compute_all,
        )

    @rule(request_id=st.integers(0, 30))
    def cancel(self, request_id: int) -> None:
        self.twin.cancel(request_id)

    @rule(tenant=st.integers(0, 3), weight=st.sampled_from([0.5, 1.0, 3.0]))
    def set_tenant(self, tenant: int, weight: float) -> None:
        self.twin.set_tenant(tenant, weight)

    @rule(tenant=st.integers(0, 3), model=st.integers(0, 1), blocks=st.sampled_from([0, 0, 1, 3, 6, 12]))
    def set_quota(self, tenant: int, model: int, blocks: int) -> None:
        self.twin.set_quota(tenant, model % len(self.twin.naive), blocks)

    @rule(device_us=st.integers(0, 300))
    def step(self, device_us: int) -> None:
        self.twin.step(device_us=device_us)

    @rule(device_us=st.integers(0, 300), count=st.integers(2, 8))
    def several_steps(self, device_us: int, count: int) -> None:
        for _ in range(count):
            self.twin.step(device_us=device_us)

    @rule(failing=st.dictionaries(st.integers(0, 30), st.integers(1, 2), max_size=2))
    def step_with_failing_rows(self, failing: dict[int, int]) -> None:
        self.twin.step(failing=failing)

    @invariant()
    def invariants_hold(self) -> None:
        if hasattr(self, "twin"):
            self.twin.ex.runtime.check_invariants()

    def teardown(self) -> None:
        """Every accepted request finishes, and then no block is held."""
        if not hasattr(self, "twin"):
            return
        for _ in range(3000):
            if not self.twin.ex.runtime.has_work():
                break
            self.twin.step()
        assert not self.twin.ex.runtime.has_work()
        assert all(s.active_blocks == 0 for s in self.twin.ex.runtime.stats()), "B7"


TestRuntimeMachine = RuntimeMachine.TestCase
TestRuntimeMachine.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


def run_random_trace(seed: int, ticks: int) -> None:
    rng = random.Random(seed)
    twin = Twin([random_spec(rng) for _ in range(rng.randint(1, 3))], random_config(rng))
    load = rng.choice([0.2, 0.5, 1.5])
    has_quotas = seed % 2 == 1
    for _ in range(ticks):
        while rng.random() < load / (1 + load):
            random_submit(rng, twin)
        if rng.random() < 0.05 and twin.live:
            twin.cancel(rng.choice(sorted(twin.live)))
        if rng.random() < 0.03:
            twin.set_tenant(rng.randint(0, 4), rng.choice([0.25, 1.0, 4.0]))
        if has_quotas and rng.random() < 0.05:
            random_quota(rng, twin)
        failing = (
            {rng.choice(sorted(twin.live)): rng.randint(1, 2)} if twin.live and rng.random() < 0.03 else {}
        )
        twin.step(device_us=rng.randint(0, 300), failing=failing)
    for _ in range(20_000):
        if twin.step(device_us=100) is None:
            break
    assert not twin.ex.runtime.has_work()


@pytest.mark.parametrize("seed", range(12))
def test_a_random_trace_is_planned_as_the_naive_scheduler_plans_it(seed: int) -> None:
    run_random_trace(seed, ticks=120)


@pytest.mark.slow  # about 90 s
@pytest.mark.parametrize("seed", range(100, 180))
def test_many_random_traces_are_planned_as_the_naive_scheduler_plans_them(seed: int) -> None:
    run_random_trace(seed, ticks=300)
