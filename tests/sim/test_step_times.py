"""Step times: presets, files, and what a model has learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from airi._core.parts import StepTimeModel
from airi.errors import ConfigError
from airi.simulate import PRESETS, Batch, StepTime
from airi.simulate.step_time import DEFAULT_PRESET, Piece
from tests.sim.samples import FAST, batch, run


def test_a_saved_step_time_is_read_back(tmp_path: Path) -> None:
    times = StepTime(
        memory=Piece(step_us=1.5, seq_us=2),
        arithmetic=Piece(pair_us=1e-4, ratios=(0.9, 1.2)),
        source="here",
    )
    times.save(tmp_path / "t.json")
    assert StepTime.load(tmp_path / "t.json") == times


def test_pieces_of_a_model_are_what_it_learnt() -> None:
    model = StepTimeModel()
    for i in range(400):
        decodes = 1 + i % 50
        model.observe(
            (decodes, decodes, 100 * decodes * (1 + i % 3), 0.0),
            500.0 + 3 * decodes + 0.01 * 100 * decodes * (1 + i % 3),
        )
        tokens = 64 * (1 + i % 16)
        model.observe((tokens, 1, 0, tokens * tokens / 2), 200.0 + 2.0 * tokens + 1e-3 * tokens * tokens / 2)
    times = StepTime.from_model(model, source="learnt")
    for work in [(30, 30, 6000, 0.0), (640, 1, 0, 640 * 320.0)]:
        tokens, seqs, context, pairs = work
        pieces = [
            p.step_us + p.token_us * tokens + p.seq_us * seqs + p.context_us * context + p.pair_us * pairs
            for p in (times.memory, times.arithmetic)
        ]
        assert max(pieces) == pytest.approx(model.estimate(work), rel=1e-9)


def test_a_fit_spreads_each_piece_as_all_of_its_steps_were() -> None:
    """The last steps, decodes that take what is expected of them, are no more than half of all."""
    model = cast(
        StepTimeModel, SimpleNamespace(pieces=[(1000.0, 0.0, 10.0, 0.0, 0.0), (0.0, 100.0, 0.0, 0.0, 1.0)])
    )
    decodes = [(n, n, 50.0 * n, 0.0, 1000.0 + 10 * n) for n in range(1, 9)]
    chunks = [(n, 1, 0.0, 100.0, 1.25 * (100.0 * n + 100)) for n in range(16, 20)]
    slow = [(*step[:4], 2 * step[4]) for step in decodes]
    times = StepTime.fit(model, np.array(slow + chunks + decodes), source="here")
    assert times.memory.as_tuple() == model.pieces[0]
    assert times.arithmetic.as_tuple() == model.pieces[1]
    assert set(times.memory.ratios[:29]) == {1.0}
    assert set(times.memory.ratios[34:]) == {2.0}
    assert set(times.arithmetic.ratios) == {1.25}
    assert len(times.memory.ratios) == len(times.arithmetic.ratios)
    assert StepTime.fit(model, np.array(decodes)).arithmetic.ratios == (), "there was none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "it must be an object with memory and arithmetic"),
        ("{", "step_time .*t.json"),
        ('{"memory": {}, "arithmetic": 3}', "arithmetic must be an object with some of step_us"),
        ('{"memory": {"speed": 1}, "arithmetic": {}}', "memory must be an object with some of step_us"),
        (
            '{"memory": {"seq_us": -1}, "arithmetic": {}}',
            "seq_us is -1; it must be a number from 0 to 1e\\+09",
        ),
        ('{"memory": {"step_us": 1e308}, "arithmetic": {}}', "step_us is 1e\\+308; it must be"),
        ('{"memory": {"seq_us": NaN}, "arithmetic": {}}', "seq_us is nan"),
        ('{"memory": {"seq_us": "1"}, "arithmetic": {}}', "seq_us is '1'"),
        ('{"memory": {}, "arithmetic": {"ratios": 2}}', "ratios must be a list of numbers"),
        ('{"memory": {}, "arithmetic": {"ratios": ["1"]}}', "ratios must be a list of numbers"),
        ('{"memory": {}, "arithmetic": {"ratios": [2, 1]}}', "ratios must be above 0, .* and ascending"),
        ('{"memory": {}, "arithmetic": {"ratios": [0]}}', "ratios must be above 0, .* and ascending"),
        ('{"memory": {}, "arithmetic": {"ratios": [1, 1e300]}}', "ratios must be .* at most 1e\\+06"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        StepTime.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_presets_say_where_they_come_from_and_hold_a_long_prompt() -> None:
    assert DEFAULT_PRESET in PRESETS
    for preset in PRESETS.values():
        assert preset.step_time.source.startswith("computed from data sheets")
        assert preset.kv_tokens > 32_768


def test_faster_hardware_is_faster() -> None:
    whole = batch([0], [2000], [50])
    ends: dict[str, Any] = {
        name: run(whole, step_time=name, kv_blocks=200).figures["simulated_s"] for name in PRESETS
    }
    assert ends["h200-8b-fp8"] < ends["h200-8b-bf16"] < ends["h100-8b-bf16"]
    assert ends["h200-8b-fp8"] < ends["h200-70b-fp8"]


def around(times: StepTime, ratios: tuple[float, ...]) -> StepTime:
    """The same, with steps that lie around it like that."""
    memory, arithmetic = (replace(piece, ratios=ratios) for piece in (times.memory, times.arithmetic))
    return StepTime(memory=memory, arithmetic=arithmetic)


def one_by_one() -> Batch:
    """Requests that never meet: every gap between tokens is a step."""
    return batch(
        arrival_us=[20_000 * i for i in range(100)], input_tokens=[8] * 100, output_tokens=[101] * 100
    )


def test_a_ratio_is_what_every_step_takes_more() -> None:
    plain = run(one_by_one(), step_time=FAST).figures
    twice = run(one_by_one(), step_time=around(FAST, (2.0,))).figures
    assert twice["itl_ms"]["p50"] == pytest.approx(2 * plain["itl_ms"]["p50"], rel=0.02)
    assert twice["itl_ms"]["p99"] == pytest.approx(2 * plain["itl_ms"]["p99"], rel=0.02)


def test_steps_are_spread_as_ratios_say_and_the_same_each_time() -> None:
    spread = around(FAST, (0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 4.0))
    plain, found, again = (run(one_by_one(), step_time=t).figures for t in (FAST, spread, spread))
    assert found["itl_ms"] == again["itl_ms"]
    assert found["itl_ms"]["mean"] == pytest.approx(1.42 * plain["itl_ms"]["mean"], rel=0.03)
    assert found["itl_ms"]["p50"] == pytest.approx(1.15 * plain["itl_ms"]["p50"], rel=0.06)
    assert found["itl_ms"]["p95"] == pytest.approx(4 * plain["itl_ms"]["p95"], rel=0.03)
