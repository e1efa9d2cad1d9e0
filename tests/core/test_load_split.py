"""Whether to load a prefix or to compute it, and where to split it: against all numbers of blocks there are."""

from __future__ import annotations

import math
import random

import pytest

from airi._core import parts

BLOCK = 16


class Piecewise:
    """A step's time as the model knows it, and the model trained with it."""

    def __init__(
        self, memory: tuple[float, float], arithmetic: tuple[float, float], pairs: float = 0.0
    ) -> None:
        self.memory, self.arithmetic, self.pairs = memory, arithmetic, pairs
        self.model = parts.StepTimeModel()
        rng = random.Random(5)
        for _ in range(1500):
            seqs = rng.randint(1, 32)
            tokens = rng.choice([seqs, seqs + rng.randint(1, 1024)])
            chunk = tokens - seqs
            work = (tokens, seqs, 0, float(chunk * (rng.randint(0, 4096) + chunk / 2)))
            self.model.observe(work, self.micros(work))

    def micros(self, work: tuple[int, int, int, float]) -> float:
        (a, b), (c, d) = self.memory, self.arithmetic
        return max(a + b * work[0], c + d * work[0] + self.pairs * work[3])


def total(
    model: parts.StepTimeModel,
    blocks: int,
    start: int,
    length: int,
    chunk: int,
    per_block: float,
    wait: float,
) -> float:
    load = wait + blocks * per_block if blocks else 0.0
    return load + parts.prefill_micros(model, start + blocks * BLOCK, length, chunk)


def split(
    model: parts.StepTimeModel,
    num_blocks: int,
    length: int,
    *,
    start: int = 0,
    chunk: int = 512,
    per_block: float,
    wait: float,
) -> int:
    return parts.best_load(
        model, start, num_blocks, length, BLOCK, chunk, lambda blocks: wait + blocks * per_block
    )


@pytest.fixture(scope="module")
def device() -> Piecewise:
    """Steps of up to 200 tokens take 5 ms; each further token adds 20 us."""
    return Piecewise(memory=(5000.0, 0.0), arithmetic=(1000.0, 20.0))


def test_prefill_time_is_that_of_its_steps(device: Piecewise) -> None:
    steps = [(512, 0), (512, 512), (76, 1024)]
    wanted = sum(device.model.estimate((q, 1, 0, q * (at + q / 2))) for q, at in steps)
    assert parts.prefill_micros(device.model, 0, 1100, 512) == pytest.approx(wanted)


def test_what_loads_slower_than_it_is_computed_is_not_loaded(device: Piecewise) -> None:
    assert split(device.model, 60, 1000, per_block=1000.0, wait=0.0) == 0
    assert split(device.model, 60, 1000, per_block=math.inf, wait=math.inf) == 0
    assert split(device.model, 60, 1000, per_block=1.0, wait=1e9) == 0, "the queue counts"


def test_nothing_is_loaded_before_the_model_knows_anything() -> None:
    assert split(parts.StepTimeModel(), 60, 1000, per_block=1.0, wait=0.0) == 0


def test_what_the_last_step_hides_is_computed(device: Piecewise) -> None:
    blocks = split(device.model, 60, 1000, per_block=100.0, wait=0.0)
    assert 0 < blocks < 60
    tail = 1000 - blocks * BLOCK
    assert 150 <= tail <= 250, f"{tail} tokens are computed in the time of one"


@pytest.mark.parametrize("seed", range(40))
def test_the_split_is_the_best_of_all_where_steps_cost_by_tokens(seed: int) -> None:
    rng = random.Random(seed)
    device = Piecewise(
        memory=(rng.uniform(1000, 20_000), rng.uniform(0, 2)),
        arithmetic=(rng.uniform(0, 3000), rng.uniform(5, 60)),
    )
    for _ in range(20):
        length = rng.randint(20, 500)
        most = (length - 1) // BLOCK
        per_block, wait = rng.uniform(1, 1200), rng.uniform(0, 3000)
        costs = [total(device.model, k, 0, length, 512, per_block, wait) for k in range(most + 1)]
        found = split(device.model, most, length, per_block=per_block, wait=wait)
        assert costs[found] == pytest.approx(min(costs), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_split_is_never_worse_than_all_or_nothing(seed: int) -> None:
    """Over several steps, with attention: within 2 % of the best of all, and never behind either end."""
    rng = random.Random(seed)
    device = Piecewise(
        memory=(rng.uniform(1000, 20_000), rng.uniform(0, 2)),
        arithmetic=(rng.uniform(0, 3000), rng.uniform(5, 60)),
        pairs=rng.choice([0.0, 1e-4, 5e-3]),
    )
    for _ in range(10):
        start = BLOCK * rng.randint(0, 40)
        length = start + rng.randint(20, 4000)
        most = rng.randint(1, (length - start - 1) // BLOCK)
        per_block, wait = rng.uniform(1, 1200), rng.uniform(0, 3000)
        costs = [total(device.model, k, start, length, 512, per_block, wait) for k in range(most + 1)]
        found = split(device.model, most, length, start=start, per_block=per_block, wait=wait)
        assert costs[found] <= min(costs[0], costs[most]) + 1e-6
        assert costs[found] <= min(costs) * 1.02
