"""The picture of a timeline is well-formed, bounded and the same for the same simulation."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from airi.simulate.plot import draw
from tests.sim.samples import batch, random_batch, run

SVG = "{http://www.w3.org/2000/svg}"


def test_a_picture_has_a_curve_for_everything_it_names() -> None:
    text = draw(run(random_batch(1, 300), ttft_ms=5.0, itl_ms=1.0), title="a < b & c")
    root = ElementTree.fromstring(text)
    said = [element.text for element in root.iter(f"{SVG}text")]
    for label in ("a < b & c", "waiting", "running", "KV blocks", "output", "p50", "p95", "target 5"):
        assert label in said
    curves = [e for e in root.iter(f"{SVG}path") if e.get("class") == "line"]
    assert len(curves) >= 10


def test_everything_is_inside_the_picture() -> None:
    root = ElementTree.fromstring(draw(run(random_batch(2, 200), ttft_ms=1e6), title="t"))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for path in root.iter(f"{SVG}path"):
        numbers = [
            float(n) for n in path.get("d", "").replace("M", "").replace("L", "").replace("Z", "").split()
        ]
        assert all(0 <= x <= width for x in numbers[::2])
        assert all(0 <= y <= height for y in numbers[1::2])


@pytest.mark.parametrize("requests", [1, 2, 400])
def test_the_same_simulation_gives_the_same_picture(requests: int) -> None:
    pictures = {draw(run(random_batch(3, requests)), title="t") for _ in range(2)}
    assert len(pictures) == 1


def test_a_simulation_of_which_nothing_runs_has_a_picture() -> None:
    ElementTree.fromstring(draw(run(batch([0], [10_000], [1]), kv_blocks=1), title="t"))
