"""Log histograms are as good as keeping every value, to one per cent."""

from __future__ import annotations

import numpy as np
import pytest

from airi._core.sim import LogHistogram

QUANTILES = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


def exact(values: np.ndarray[tuple[int], np.dtype[np.int64]], q: float) -> int:
    """The smallest value that a share q of all do not exceed."""
    ordered = np.sort(values)
    return int(ordered[max(int(np.ceil(q * len(values))), 1) - 1])


@pytest.mark.parametrize("seed", range(6))
def test_quantiles_are_within_one_per_cent_of_the_exact_ones(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = np.exp(draw.normal(3 + 3 * seed, 2.0, 5000)).astype(np.int64)
    histogram = LogHistogram()
    for value in values.tolist():
        histogram.add(value)
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(values.mean(), rel=1e-12)
    assert histogram.max == values.max()
    for q in QUANTILES:
        assert histogram.quantile(q) == pytest.approx(exact(values, q), rel=0.01)


def test_small_values_are_exact() -> None:
    for value in range(128):
        histogram = LogHistogram()
        histogram.add(value - 1 if value else 0)
        histogram.add(value, 3)
        histogram.add(value + 1)
        assert histogram.quantile(0.5) == value


def test_buckets_hold_a_value_and_its_neighbours_to_one_per_cent() -> None:
    for exponent in range(7, 53):
        for value in (2**exponent - 1, 2**exponent, 2**exponent + 1):
            histogram = LogHistogram()
            histogram.add(1)
            histogram.add(value, 8)
            histogram.add(2**53)
            assert histogram.quantile(0.5) == pytest.approx(value, rel=0.01)


def test_merging_is_adding_in_any_order() -> None:
    values = np.random.default_rng(7).integers(0, 10**9, 400)
    whole, parts = LogHistogram(), [LogHistogram() for _ in range(3)]
    for i, value in enumerate(values.tolist()):
        whole.add(value)
        parts[i % 3].add(value)
    for order in ((0, 1, 2), (2, 1, 0)):
        merged = LogHistogram()
        for i in order:
            merged.merge(parts[i])
        assert [merged.quantile(q) for q in QUANTILES] == [whole.quantile(q) for q in QUANTILES]
        assert (merged.count, merged.mean, merged.max) == (whole.count, whole.mean, whole.max)


def test_an_empty_one_says_nothing() -> None:
    assert LogHistogram().quantile(0.5) == 0
    assert LogHistogram().mean == 0


def test_what_is_outside_counts_as_the_edge() -> None:
    histogram = LogHistogram()
    histogram.add(-5)
    histogram.add(2**60)
    assert histogram.quantile(0.0) == 0
    assert histogram.max == 2**53


def test_a_share_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\], got 1.5"):
        LogHistogram().quantile(1.5)
