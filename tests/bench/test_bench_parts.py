"""Figures, workloads and random checkpoints of `airi bench`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from airi.bench.rows import Timings, percentile, summary
from airi.bench.scheduler import measure_scheduler
from airi.bench.shapes import SHAPES, cached_checkpoint, make_checkpoint
from airi.bench.workload import MIXES, Workload
from airi.errors import ConfigError
from airi.text import Tokenizer
from benches.contestants import workload as contestants


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert math.isclose(percentile(values, q), float(np.percentile(values, q)), rel_tol=1e-9, abs_tol=1e-6)


def test_timings_follow_the_definitions() -> None:
    timings = Timings(10.0)
    for now in (10.5, 10.6, 10.9):
        timings.arrived(now, 1)
    assert timings.ttft == pytest.approx(0.5)
    assert timings.itl == pytest.approx([0.1, 0.3])
    assert timings.tpot == pytest.approx(0.2)
    assert timings.e2e == pytest.approx(0.9)
    single = Timings(0.0)
    single.arrived(1.0, 1)
    assert single.tpot is None
    row = summary([timings, single], prompt_tokens=8, duration=2.0)
    assert (row["request_s"], row["output_tok_s"], row["total_tok_s"]) == (1.0, 2.0, 6.0)
    assert row["ttft_ms_mean"] == 750.0
    assert row["tpot_ms_p50"] == 200.0


@pytest.mark.parametrize("mix", MIXES)
def test_the_same_seed_gives_the_same_requests(mix: str) -> None:
    workload = Workload(requests=20, input_len=40, output_len=10, mix=mix, range_ratio=0.5, seed=3)
    jobs = workload.jobs()
    assert jobs == workload.jobs()
    assert jobs != Workload(requests=20, input_len=40, output_len=10, mix=mix, range_ratio=0.5, seed=4).jobs()
    assert len(jobs) == 20
    assert all(100 <= token < 1000 for job in jobs for token in job.prompt)
    assert all(job.prompt and job.output_len >= 1 for job in jobs)


def test_lengths_are_those_of_the_mix() -> None:
    exact = Workload(requests=3, input_len=40, output_len=10).jobs()
    assert {(len(j.prompt), j.output_len) for j in exact} == {(40, 10)}
    ranged = Workload(requests=200, input_len=40, output_len=10, range_ratio=0.5).jobs()
    assert {min(len(j.prompt) for j in ranged), max(len(j.prompt) for j in ranged)} == {20, 60}
    prefixed = Workload(requests=3, input_len=40, mix="prefix").jobs()
    assert len({tuple(j.prompt[:20]) for j in prefixed}) == 1
    assert len({tuple(j.prompt[20:]) for j in prefixed}) == 3
    assert [len(j.prompt) for j in Workload(requests=3, input_len=10, mix="one-long").jobs()] == [160, 10, 10]
    mixed = Workload(requests=2000, input_len=100, mix="mixed").jobs()
    assert 90 < sum(len(j.prompt) for j in mixed) / 2000 < 110


def test_a_random_checkpoint_is_one_that_others_read(tmp_path: Path) -> None:
    shape = SHAPES["llama-2m"]
    make_checkpoint(shape, tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(shape.tensors())
        embedding = file.get_tensor("model.embed_tokens.weight").float()
        assert tuple(embedding.shape) == (shape.vocab, shape.hidden)
        assert float(embedding.std()) == pytest.approx(1 / math.sqrt(shape.hidden), rel=0.02)
        assert bool((file.get_tensor("model.norm.weight") == 1).all())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == shape.vocab
    assert tokenizer.decode(tokenizer.encode("Hello, wörld 🙂")) == "Hello, wörld 🙂"
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == shape.layers


def test_a_shape_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cached_checkpoint("llama-2m")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert cached_checkpoint("llama-2m") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in folder.parent.iterdir()] == ["llama-2m"]


def test_the_scheduler_is_measured_per_running_request() -> None:
    ended: list[int] = []
    rows = measure_scheduler((1, 7, 300), steps=40, on_done=ended.append)
    assert [row["running"] for row in rows] == [1, 7, 300]
    assert ended == [1, 1, 1]
    for row in rows:
        assert row["steps"] == 64
        assert 0 < row["ns_p20"] <= row["ns_per_request_step"] <= row["ns_p80"]


def test_a_scheduler_without_requests_or_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="running is 0; it must be at least 1"):
        measure_scheduler((4, 0))
    with pytest.raises(ConfigError, match="steps is 0; it must be at least 1"):
        measure_scheduler((4,), steps=0)


def test_no_round_of_a_contestant_repeats_a_prompt_of_another_or_of_the_warm_up() -> None:
    workload = contestants.Workload(
        model="m", requests=4, input_len=8, output_len=1, threads=1, seed=0, rounds=5
    )
    prompts = [tuple(prompt) for index in range(-1, 5) for prompt in workload.prompts(index)]
    assert len(set(prompts)) == len(prompts) == 24
