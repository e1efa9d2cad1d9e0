"""The step-time model (scheduling.md, 5) against a naive twin, and its properties M1-M5."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from airi._core.parts import StepTimeModel

Work = tuple[int, int, int, float]
Truth = Callable[[Work], float]

USUAL = np.array([1.0, 256.0, 64.0, 65536.0, 1048576.0])
DECODE_ONLY = np.array([9000.0, 5.0, 20.0, 0.02, 0.0])  # microseconds per step, token, sequence, key, pair
PREFILL = np.array([2000.0, 60.0, 10.0, 0.015, 0.004])


def true_time(work: Work) -> float:
    x = np.array([1.0, *work])
    return float(max(DECODE_ONLY @ x, PREFILL @ x))


def draw(rng: random.Random) -> Work:
    """Half of the steps decode only; the others hold a chunk of a prompt too."""
    decodes = rng.randint(0, 256)
    context = sum(rng.randint(16, 2000) for _ in range(decodes))
    if rng.random() < 0.5 and decodes:
        return decodes, decodes, context, 0.0
    chunk, before = rng.randint(16, 2048), rng.randint(0, 8000)
    return decodes + chunk, decodes + 1, context, chunk * (before + chunk / 2)


class NaiveModel:
    """Fits both pieces from all that was ever observed, summed up anew each time."""

    def __init__(self) -> None:
        self.weights = np.zeros((2, 5))
        self.rows: list[list[tuple[float, NDArray[np.float64], float]]] = [[], []]
        self.spread, self.run = 0.0, 0

    def estimate(self, work: Work) -> float:
        return float(max(self.weights @ (np.array([1.0, *work]) / USUAL)))

    def observe(self, work: Work, micros: float) -> None:
        x = np.array([1.0, *work]) / USUAL
        if min(len(rows) for rows in self.rows) < 32:
            piece = int(work[0] > work[1])
            self._learn(piece, x, micros, max(micros, float(self.weights[piece] @ x)))
            return
        target = self._target(micros, self.estimate(work))
        near = int(np.argmin(np.abs(self.weights @ x - target)[::-1]) ^ 1)
        size, high = max(target, self.estimate(work)), self.weights @ x > target
        for piece in (0, 1):
            if piece == near or high[piece]:
                self._learn(piece, x, target, size)

    def _learn(self, piece: int, x: NDArray[np.float64], target: float, size: float) -> None:
        self.rows[piece] = [(w * 0.998, x_, y) for w, x_, y in self.rows[piece]]
        self.rows[piece].append((size**-2, x, target))
        gram = np.sum([w * np.outer(x_, x_) for w, x_, _ in self.rows[piece]], axis=0)
        right = np.sum([w * y * x_ for w, x_, y in self.rows[piece]], axis=0)
        for _ in range(8):
            for i in range(5):
                if gram[i, i] > 0:
                    gap = right[i] - gram[i] @ self.weights[piece]
                    self.weights[piece, i] = max(0.0, self.weights[piece, i] + gap / gram[i, i])

    def _target(self, micros: float, expected: float) -> float:
        off = abs(micros - expected) / expected
        self.spread = max(self.spread or off, 0.02)
        clip = 5 * self.spread
        self.spread *= 1.02 if off > self.spread else 0.98
        sign = 1 if micros > expected else -1
        if off <= clip:
            self.run = 0
            return micros
        self.run = self.run + sign if self.run * sign > 0 else sign
        if abs(self.run) < 8:
            return expected * (1 + sign * clip)
        factor = micros / expected
        self.rows = [[(w * 0.02, x, y * factor) for w, x, y in rows] for rows in self.rows]
        self.weights *= factor
        self.spread, self.run = 0.1, 0
        return micros


def observed(
    truth: Truth, *, count: int, seed: int, noise: float = 0.0
) -> tuple[StepTimeModel, random.Random]:
    model, rng = StepTimeModel(), random.Random(seed)
    feed(model, rng, truth, count, noise)
    return model, rng


def feed(model: StepTimeModel, rng: random.Random, truth: Truth, count: int, noise: float = 0.0) -> None:
    for _ in range(count):
        work = draw(rng)
        model.observe(work, truth(work) * math.exp(noise * rng.gauss(0, 1)))


def errors(model: StepTimeModel, truth: Truth, seed: int = 99) -> NDArray[np.float64]:
    """Relative errors over 300 steps."""
    rng = random.Random(seed)
    return np.array([abs(model.estimate(w) / truth(w) - 1) for w in (draw(rng) for _ in range(300))])


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_naive_fit_through_noise_outliers_and_a_change(seed: int) -> None:
    model, naive, rng = StepTimeModel(), NaiveModel(), random.Random(seed)
    for step in range(300):
        work = draw(rng)
        micros = true_time(work) * math.exp(0.05 * rng.gauss(0, 1)) * (3 if step > 200 else 1)
        if rng.random() < 0.02:
            micros *= 50
        model.observe(work, micros)
        naive.observe(work, micros)
        probe = draw(rng)
        assert model.estimate(probe) == pytest.approx(naive.estimate(probe), rel=1e-6)


work = st.tuples(
    st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 10**9), st.floats(0, 1e15, allow_nan=False)
)


@given(
    st.lists(st.tuples(work, st.floats(1e-3, 1e12)), max_size=120),
    work,
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 10**9), st.floats(0, 1e15)),
)
def test_m1_estimates_are_finite_never_negative_and_monotone(
    samples: list[tuple[Work, float]], base: Work, more: Work
) -> None:
    model = StepTimeModel()
    for given_work, micros in samples:
        model.observe(given_work, micros)
    larger = (base[0] + more[0], base[1] + more[1], base[2] + more[2], base[3] + more[3])
    assert 0 <= model.estimate(base) <= model.estimate(larger) * (1 + 1e-12)
    assert math.isfinite(model.estimate(larger))
    assert model.sigma >= 0


@pytest.mark.parametrize("seed", range(4))
def test_m2_without_noise_the_error_goes_to_zero(seed: int) -> None:
    model, rng = observed(true_time, count=1000, seed=seed)
    early = errors(model, true_time)
    feed(model, rng, true_time, 9000)
    late = errors(model, true_time)
    assert np.median(early) < 0.01
    assert late.max() < 0.01
    assert np.median(late) < 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_m3_after_a_change_of_regime_it_is_right_again(factor: float, seed: int) -> None:
    def changed(work: Work) -> float:
        return factor * true_time(work)

    model, rng = observed(true_time, count=2000, seed=seed, noise=0.03)
    feed(model, rng, changed, 2500, noise=0.03)
    found = errors(model, changed)
    assert np.median(found) < 0.02
    assert found.max() < 0.1


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(5))
def test_m4_one_outlier_of_a_hundred_times_hardly_moves_it(noise: float, seed: int) -> None:
    model, rng = observed(true_time, count=2000, seed=seed, noise=noise)
    probes = [draw(rng) for _ in range(300)]
    before = np.array([model.estimate(p) for p in probes])
    outlier = draw(rng)
    model.observe(outlier, 100 * true_time(outlier))
    after = np.array([model.estimate(p) for p in probes])
    assert np.abs(after / before - 1).max() < 0.05


@pytest.mark.parametrize("micros", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_m5_what_is_no_measurement_changes_nothing(micros: float) -> None:
    model, rng = observed(true_time, count=200, seed=1)
    probes = [draw(rng) for _ in range(20)]
    before = [model.estimate(p) for p in probes], model.sigma
    model.observe(draw(rng), micros)
    for negative in ((-1, 1, 1, 0.0), (1, -1, 1, 0.0), (1, 1, -1, 0.0), (1, 1, 1, -1.0), (1, 1, 1, math.nan)):
        model.observe(negative, 1000.0)
    assert ([model.estimate(p) for p in probes], model.sigma) == before


def test_sigma_is_what_the_noise_leaves() -> None:
    quiet, _ = observed(lambda _: 10_000.0, count=2000, seed=3, noise=0.01)
    loud, _ = observed(lambda _: 10_000.0, count=2000, seed=3, noise=0.1)
    assert 30 < quiet.sigma < 300
    assert 300 < loud.sigma < 3000


def test_ratios_are_the_quantiles_of_what_steps_took_over_what_was_expected() -> None:
    rng = random.Random(4)
    model = StepTimeModel()
    feed(model, rng, true_time, 400)
    assert model.ratio(0.5) == pytest.approx(1, abs=0.02)
    drawn = []
    for _ in range(1500):
        work = draw(rng)
        expected = model.estimate(work)
        micros = true_time(work) * (rng.uniform(0.9, 1.1) if rng.random() < 0.9 else rng.uniform(1.5, 3))
        model.observe(work, micros)
        drawn.append(micros / expected)
    # The first, exact ones fade: their share is known, and they lie at 1.
    weights = np.array([0.9995**age for age in range(len(drawn) - 1, -1, -1)])
    order = np.argsort(drawn)
    older = sum(0.9995**age for age in range(len(drawn), len(drawn) + 400))
    for share in (0.05, 0.2, 0.93, 0.97, 0.99):
        total = weights.sum() + older
        below = np.cumsum(weights[order]) + older * (np.array(drawn)[order] > 1)
        wanted = np.array(drawn)[order][np.searchsorted(below, share * total)]
        assert model.ratio(share) == pytest.approx(wanted, rel=0.03)
    assert StepTimeModel().ratio(0.9) == 1
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        model.ratio(1.5)


def test_decodes_alone_are_enough_for_decodes() -> None:
    model = StepTimeModel()
    for running in range(1, 200):
        model.observe((running, running, 300 * running, 0.0), 1000.0 + 50 * running)
    assert model.estimate((100, 100, 30_000, 0.0)) == pytest.approx(6000, rel=0.02)
    assert StepTimeModel().estimate((1, 1, 1, 0.0)) == 0


@pytest.mark.parametrize("seed", range(2))
def test_work_that_no_step_has_held_for_long_keeps_its_price(seed: int) -> None:
    """Sums over it fade; some 350,000 steps later they are too small for a number, and must not undo all weights."""
    model, rng = observed(true_time, count=400, seed=seed, noise=0.02)
    decodes = [(n, n, n * rng.randint(16, 2000), 0.0) for n in range(1, 65)]
    for i in range(360_000):
        model.observe(decodes[i % 64], true_time(decodes[i % 64]) * rng.uniform(0.95, 1.05))
    prompt = (256, 1, 0, 256 * 128.0)
    assert model.estimate(prompt) == pytest.approx(true_time(prompt), rel=0.1)
    assert model.pieces[0][0] == pytest.approx(DECODE_ONLY[0], rel=0.05)


def test_a_prompt_of_one_token_does_not_price_long_ones() -> None:
    """It is the first thing an engine runs, cold, with half a pair to blame for it."""
    model, rng = StepTimeModel(), random.Random(3)
    model.observe((1, 1, 0, 0.5), 5 * true_time((1, 1, 0, 0.5)))
    for _ in range(40):
        running, chunk = rng.randint(1, 64), rng.randint(16, 2048)
        for work in (
            (running, running, 300 * running, 0.0),
            (running + chunk, running + 1, 300 * running, chunk * chunk / 2),
        ):
            model.observe(work, true_time(work))
    assert model.is_trained
    assert errors(model, true_time).max() < 0.5


def test_a_model_that_imports_the_state_of_another_goes_on_as_it() -> None:
    original, rng = observed(true_time, count=300, seed=5, noise=0.05)
    copied = StepTimeModel()
    assert not copied.is_trained
    copied.import_state(original.export_state())
    assert copied.is_trained
    assert copied.sigma == original.sigma
    for _ in range(200):
        work = draw(rng)
        assert copied.estimate(work) == original.estimate(work)
        micros = 3 * true_time(work) * math.exp(0.05 * rng.gauss(0, 1))
        copied.observe(work, micros)
        original.observe(work, micros)
    assert copied.export_state() == original.export_state()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, -1.0),
        (3, math.nan),
        (5, -1.0),
        (35, 0.5),
        (35, -1.0),
        (72, -0.1),
        (73, 8.0),
        (73, 0.5),
        (74, -1.0),
        (75, -1.0),
        (218, math.inf),
        (219, 64.0),
        (219, 0.5),
    ],
)
def test_a_state_that_no_model_exports_is_refused(place: int, value: float) -> None:
    model, _ = observed(true_time, count=200, seed=1)
    before = model.export_state()
    state = list(before)
    state[place] = value
    with pytest.raises(ValueError, match="state of a step-time model must"):
        model.import_state(state)
    with pytest.raises(ValueError, match="its length differs"):
        model.import_state(before[:-1])
    assert model.export_state() == before
