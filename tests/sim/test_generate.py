"""Requests that are drawn instead of read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from airi.errors import ConfigError
from airi.simulate import Trace
from airi.simulate.batches import Batch, joined
from airi.simulate.generate import Generator
from tests.sim.samples import write


def drawn(generator: Generator) -> Batch:
    return joined(list(generator.batches()))


def test_the_same_figures_draw_the_same_requests_and_another_seed_others() -> None:
    text = "rate=50,requests=20000,tenants=3"
    first, again, other = (drawn(Generator.parse(t)) for t in (text, text, f"{text},seed=1"))
    assert np.array_equal(first.arrival_us, again.arrival_us)
    assert np.array_equal(first.input_tokens, again.input_tokens)
    assert not np.array_equal(first.arrival_us, other.arrival_us)


def test_what_is_drawn_has_the_means_and_spreads_that_were_asked_for() -> None:
    found = drawn(
        Generator(rate=40, requests=40_000, input=300, output=90, spread=0.5, burstiness=2.0, tenants=4)
    )
    gaps = np.diff(found.arrival_us) / 1e6
    assert np.all(gaps >= 0)
    assert gaps.mean() == pytest.approx(1 / 40, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.05)
    for lengths, mean in ((found.input_tokens, 300), (found.output_tokens, 90)):
        assert lengths.mean() == pytest.approx(mean, rel=0.02)
        assert lengths.std() / lengths.mean() == pytest.approx(0.5, rel=0.03)
    assert np.bincount(found.tenant).min() > 9_500


def test_without_spread_all_are_equal_and_even() -> None:
    found = drawn(Generator(rate=10, requests=9000, input=7, output=3, spread=0, burstiness=0))
    assert set(found.input_tokens.tolist()) == {7}
    assert set(found.output_tokens.tolist()) == {3}
    assert set(np.diff(found.arrival_us).tolist()) == {100_000}


def test_drawn_requests_are_of_the_band_of_rows_without_a_priority(tmp_path: Path) -> None:
    """What is asked for by band means the same of both."""
    text = "arrival_s,input_tokens,output_tokens\n0,1,1\n"
    read = joined(list(Trace(write(tmp_path / "c.csv", text)).batches()))
    assert set(drawn(Generator(rate=10, requests=5)).band.tolist()) == set(read.band.tolist())


def test_prompts_of_a_tenant_share_its_prefix_and_no_other() -> None:
    found = drawn(Generator(rate=10, requests=500, input=5, prefix=1024, tenants=3))
    rows = found.parts.reshape(500, 2)
    for tenant in range(3):
        assert set(map(tuple, rows[found.tenant == tenant].tolist())) == {(2 * tenant, 2 * tenant + 1)}
    assert found.input_tokens.min() > 1024


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requests=5", "generate is 'requests=5'; it must name a rate"),
        ("rate=0", "generate: rate is 0; it must be a number from 1e-06 to"),
        ("rate=nan", "generate: rate is nan; it must be a number from"),
        ("rate=1,rate=2", "generate is 'rate=1,rate=2'; it names rate twice"),
        ("rate=fast", "generate has 'rate=fast'; give NAME=NUMBER"),
        (
            "rate=1,size=2",
            "generate has no 'size'; it takes rate, requests, input, output, ",
        ),
        ("rate=1,tenants=0", "generate: tenants is 0; it must be a whole number from 1 to"),
        ("rate=1,tenants=1.5", "generate: tenants is 1.5; it must be a whole number from 1 to"),
        ("rate=1,output=0", "generate: output is 0; it must be a number from 1 to 1e+07"),
        ("rate=1e999", "generate: rate is inf; it must be a number from"),
        ("rate=1,prefix=100", "generate: prefix is 100; it must be a multiple of 512"),
        ("rate=1,tenants=99999999999999999999", "generate: tenants is 99999999999999999999; it must be"),
        ("rate=1,prefix=512000000000000", "generate: prefix is 512000000000000; it must be"),
        ("rate=1,spread=1e300", "generate: spread is 1"),
        ("rate=1,burstiness=1e300", "generate: burstiness is 1"),
        ("rate=1,input=1e30", "generate: input is 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Generator.parse(text)
    assert str(caught.value).startswith(message)


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    assert Generator.parse("rate=2e1,requests=1e3") == Generator(rate=20, requests=1000)
