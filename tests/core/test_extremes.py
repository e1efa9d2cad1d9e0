"""Numbers at the ends of their ranges: refused in one line, or computed without overflow."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from airi import _core
from airi._core import parts

from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline
from .timed import STATE, Targets

FAR = 2**53
INT32_MAX = 2**31 - 1


def test_the_dearest_service_never_turns_into_credit() -> None:
    """w = 1024 on a prompt of 2^31 tokens at weight 1/1024 is 2^71 units."""
    ledger = parts.TenantLedger(max_idle=1)
    ledger.enter(0, 1 / 1024, 0, 0)
    ledger.enter(1, 1.0, 0, 1)
    for _ in range(5):
        ledger.charge(0, 2**41)
        ledger.charge(0, 2**31)
        counter = ledger.counter(0)
        assert counter is not None
        assert 2**60 <= counter < 2**62
        assert ledger.next() == 1
        ledger.check_invariants()
    for tenant in range(2, 6):
        ledger.enter(tenant, 1 / 1024, 0, tenant)
        ledger.charge(tenant, 2**41)
        ledger.leave(tenant)
    assert 0 < ledger.lost_debt < 2**62


@pytest.mark.parametrize("longest", [10**6, FAR])
def test_every_backlogged_model_gets_a_turn_whatever_weights_and_batches(longest: int) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        weights = [2.0 ** rng.uniform(-10, 10) for _ in range(rng.randint(1, 3))]
        arbiter = parts.ModelArbiter(weights, rng.choice([1, 100, FAR]))
        for model in range(len(weights)):
            arbiter.set_backlogged(model, backlogged=True)
        for _ in range(12):
            chosen = arbiter.next()
            assert chosen is not None
            arbiter.charge(chosen, int(math.exp(rng.uniform(0, math.log(longest)))))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_model_len", INT32_MAX),
        ("max_batch_tokens", INT32_MAX),
        ("max_num_seqs", INT32_MAX),
        ("block_size", INT32_MAX),
    ],
)
def test_a_size_that_could_overflow_is_refused(field: str, value: int) -> None:
    """Rounded up to blocks it would turn negative, and any buffer would seem large enough."""
    config: dict[str, int] = {
        "block_size": 16,
        "bytes_per_block": _core.GRANULE_BYTES,
        "max_model_len": 64,
        "max_num_seqs": 4,
        "max_batch_tokens": 64,
        field: value,
    }
    with pytest.raises(ValueError, match=f"{field} must be between"):
        _core.ModelConfig(**config)  # type: ignore[arg-type]


def test_the_longest_window_needs_a_buffer_of_its_size() -> None:
    config = _core.ModelConfig(
        block_size=1,
        bytes_per_block=_core.GRANULE_BYTES,
        max_model_len=2**30,
        max_num_seqs=2**20,
        max_batch_tokens=2**30,
    )
    assert config.max_deltas == 2 * 2**20 + 2**30 + 2**30 + 1


@pytest.mark.parametrize("moment", [-FAR - 1, FAR + 1, -(2**63), 2**63 - 1])
def test_a_moment_too_far_from_the_epoch_is_refused(moment: int) -> None:
    ex = Executor()
    with pytest.raises(ValueError, match=r"arrival_us must lie in \[-2\^53, 2\^53\]"):
        ex.submit([1], arrival=moment)
    ex.now = moment
    with pytest.raises(ValueError, match=r"now_us must lie in \[-2\^53, 2\^53\]"):
        ex.plan()
    assert not ex.runtime.has_work()


@pytest.mark.parametrize("aging", [1, FAR])
def test_arrivals_at_both_ends_of_time_are_served_in_order(aging: int) -> None:
    """The earliest has aged, the latest has not: neither wraps round."""
    ex = Executor([ModelSpec(max_num_seqs=1)], Config(num_bands=64, aging_us=aging))
    late = ex.accepted([1, 2], band=63, arrival=FAR, deadline=2**63 - 1)
    early = ex.accepted([3, 4], band=63, arrival=-FAR)
    ex.now = -FAR
    ex.step()
    ex.now = FAR - 10**6
    ex.run()
    assert list(ex.finished) == [early, late]
    ex.runtime.check_invariants()


def test_moments_before_the_epoch_are_moments_like_any_other() -> None:
    ex = Executor()
    ex.now = -1_000_000
    request = ex.accepted([1, 2], deadline=-900_000)
    ex.run()
    assert ex.finished == {request: _core.FinishReason.LENGTH}


def test_a_clock_that_stands_still_lets_every_model_run() -> None:
    """Steps of 0 microseconds: the device changes hands after as many steps as a quantum has."""
    ex = Executor([ModelSpec(max_num_seqs=1), ModelSpec(max_num_seqs=1)], Config(quantum_us=5))
    for model in (0, 1):
        for _ in range(3):
            ex.accepted([1, 2], model=model, max_new=10)
    for _ in range(20):
        ex.step(device_us=0)
    assert {step.info.model for step in ex.steps} == {0, 1}


def test_an_array_that_is_not_aligned_is_refused() -> None:
    ex = Executor()
    tokens = np.frombuffer(bytes(9), np.int32, count=2, offset=1)
    with pytest.raises(TypeError, match="tokens must be aligned to its elements"):
        ex.runtime.submit(request_id=0, model=0, tokens=tokens, max_new_tokens=1, arrival_us=0)


@pytest.mark.parametrize("admission", list(_core.Admission))
@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_an_arena_of_one_block_serves_one_request_after_the_other(
    admission: _core.Admission, steps_ahead: int
) -> None:
    spec = ModelSpec(blocks=1, block_size=4, max_model_len=8, admission=admission)
    make = Pipeline if steps_ahead else Executor
    ex = make([spec], Config(num_bands=2, fairness_gap_tokens=1))
    for i in range(12):
        ex.accepted([1, 2], max_new=1 + i % 2, tenant=i % 3, band=i % 2)
    assert ex.submit([1, 2, 3], max_new=2)[1] == _core.Admit.NEVER_FITS
    ex.run()
    assert all(reason == _core.FinishReason.LENGTH for reason in ex.finished.values())
    assert len(ex.finished) == 12
    ex.runtime.check_invariants()


@pytest.mark.slow  # about 20 s each
@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (Config(), ()),
        (
            Config(locality_quantum_tokens=50, dedupe_steps=4, fairness_gap_tokens=100, bypass_tokens=50),
            ((10**9, 5000), (None, 2000)),
        ),
        (Config(locality_quantum_tokens=50), ((0, 0), (0, None), (0, None))),
    ],
    ids=["plain", "every policy", "hopeless"],
)
def test_a_million_queued_requests_are_all_served_or_cancelled(config: Config, targets: Targets) -> None:
    spec = ModelSpec(
        blocks=64, block_size=4, max_model_len=16, max_num_seqs=32, max_batch_tokens=64, targets=targets
    )
    ex = Executor([spec], replace(config, max_queued=10**6, num_bands=3, aging_us=10_000))
    ex.runtime.step_time(0).import_state(STATE)
    runtime = ex.runtime
    tokens = np.array([1, 2, 3], np.int32)
    for i in range(10**6):
        admit = runtime.submit(
            request_id=i,
            model=0,
            tenant=i % 10_007,
            band=i % 3,
            tokens=tokens,
            max_new_tokens=1,
            arrival_us=i,
        )
        assert admit == _core.Admit.ACCEPTED
    refused = runtime.submit(request_id=-1, model=0, tokens=tokens, max_new_tokens=1, arrival_us=0)
    assert refused == _core.Admit.QUEUE_FULL
    ended = 0
    for step in range(2000):
        info = runtime.step(10**6 + step)
        assert info is not None
        sampled = np.ones(info.num_samples, np.int32)
        flags = ex.buffers[info.buffer].row_flags[: info.num_rows]
        counts = (flags & _core.ROW_SAMPLE).astype(np.int32)
        runtime.commit(info.step_id, sampled, counts, np.zeros(info.num_rows, np.uint8), 1)
        ended += len(runtime.drain_events())
    assert ended > 2000 * 16
    for i in range(10**6):
        runtime.cancel(i)
    runtime.step(10**7)
    assert ended + len(runtime.drain_events()) == 10**6
    assert not runtime.has_work()
    runtime.check_invariants()


def test_a_window_of_a_thousand_million_tokens_overflows_nothing() -> None:
    longest = 2**30
    spec = ModelSpec(blocks=4, block_size=2**20, max_model_len=longest, max_num_seqs=2, max_batch_tokens=8)
    ex = Executor([spec])
    for more in (longest - 2, INT32_MAX):
        assert ex.submit([1, 2, 3], max_new=more)[1] == _core.Admit.TOO_LONG
    assert ex.submit([1, 2, 3], max_new=longest - 3)[1] == _core.Admit.NEVER_FITS
    stop = tuple(range(1, 998))
    least = ex.accepted([5], max_new=3, min_new=INT32_MAX, stop=stop)
    ex.run()
    clamped = ex.accepted([4], max_new=None, min_new=INT32_MAX, stop=stop)
    for _ in range(8):
        ex.step()
        ex.runtime.check_invariants()
    assert len(ex.outputs[clamped]) >= 7, "it may have all there is"
    assert len(ex.outputs[least]) == 3, "no stop id counts before the minimum"
    ex.runtime.cancel(clamped)
    ex.run()


@pytest.mark.parametrize("locality", [None, 1, 2**40])
def test_the_dearest_requests_overflow_no_bound_on_service(locality: int | None) -> None:
    """What a request may still be served is 2^44 units before weights, and 2^54 at the least weight."""
    longest = 2**24
    spec = ModelSpec(
        blocks=1024, block_size=2**14, max_model_len=longest, max_num_seqs=2, max_batch_tokens=8,
        admission=_core.Admission.MAX_UTIL,
    )  # fmt: skip
    config = Config(
        w_prompt=1024, w_decode=1024, bypass_tokens=2**62, fairness_gap_tokens=2**40, num_bands=2,
        locality_quantum_tokens=locality, decision_records=64,
    )  # fmt: skip
    ex = Executor([spec], config)
    for tenant in range(3):
        ex.runtime.set_tenant(tenant, 1 / 1024)
    huge = [ex.accepted([1, 2, 3], max_new=longest - 3, tenant=i, band=i % 2) for i in range(4)]
    small = ex.accepted([4], max_new=2, tenant=7)
    for _ in range(30):
        ex.step()
        ex.runtime.check_invariants()
    for request in huge:
        ex.runtime.cancel(request)
    ex.run()
    assert ex.finished[small] == _core.FinishReason.LENGTH
    assert ex.runtime.stats()[0].active_blocks == 0
