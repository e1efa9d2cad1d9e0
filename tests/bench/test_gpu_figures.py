"""Least times, goals and tables of the GPU benches: pure functions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from benches.gpu import report, roofline
from benches.gpu.budget import Budget
from benches.gpu.goals import GOALS, Goal
from benches.gpu.roofline import Ceilings, Work

H200 = Ceilings(copy_gbs=4300, read_gbs=4500, matmul_tflops=790)


def test_decode_reads_every_key_and_value_once() -> None:
    work = roofline.decode([4096] * 32, q_heads=32, kv_heads=8, head_dim=128, itemsize=2)
    assert work.nbytes == 32 * 4096 * 8 * 2 * 128 * 2 + 32 * 32 * 128 * 4
    assert roofline.least_us(work, H200) == pytest.approx(125, abs=1)


def test_partial_results_and_scales_count_as_bytes_of_decoding() -> None:
    plain = roofline.decode([100], q_heads=8, kv_heads=2, head_dim=64, itemsize=1)
    more = roofline.decode([100], q_heads=8, kv_heads=2, head_dim=64, itemsize=1, items=3, scale_bytes=4)
    assert more.nbytes - plain.nbytes == 3 * 2 * 4 * 65 * 8 + 100 * 2 * 2 * 4


def test_causal_prefill_counts_each_visible_pair_once() -> None:
    pairs = sum(context + 1 for context in range(30, 40))
    work = roofline.prefill([10], [40], q_heads=4, kv_heads=2, head_dim=64)
    assert work.flops == 4 * 4 * 64 * pairs
    whole = roofline.prefill([10], [40], q_heads=4, kv_heads=2, head_dim=64, causal=False)
    assert whole.flops == 4 * 4 * 64 * 10 * 40


def test_the_longer_of_moving_and_computing_is_the_least_time() -> None:
    assert roofline.least_us(Work(nbytes=4.3e9), H200) == pytest.approx(1000)
    assert roofline.least_us(Work(nbytes=4.3e9, flops=790e12), H200) == pytest.approx(1e6)


@pytest.mark.parametrize(("dim", "cap"), [(64, 425), (128, 550), (256, 650)])
def test_softmax_that_does_not_overlap_caps_attention(dim: int, cap: float) -> None:
    found = roofline.softmax_cap_tflops(dim, matmul_tflops=790, num_sms=132, ghz=1.7)
    assert found == pytest.approx(cap, rel=0.03)


def test_keys_from_l2_cap_small_query_tiles() -> None:
    assert roofline.l2_cap_tflops(16, l2_tbs=5.5) == 88
    assert roofline.l2_cap_tflops(128, l2_tbs=5.5) == pytest.approx(704)


def test_offload_in_one_piece_saves_what_each_copy_costs() -> None:
    whole = roofline.offload_us(1, 8 << 20, link_gbs=52)
    pieces = roofline.offload_us(64, 128 << 10, link_gbs=52)
    assert pieces - whole == pytest.approx(63 * 2)


def test_an_engine_step_reads_weights_and_keys_once() -> None:
    work = roofline.engine_step(
        weight_bytes=16e9, parameters=8e9, seq_lens=[1000] * 4, kv_bytes_per_token=131072
    )
    assert work == Work(nbytes=16e9 + 4000 * 131072, flops=2 * 8e9 * 4)


def test_rows_of_activations_are_read_and_written_once() -> None:
    assert roofline.add_rms_norm(10, 4096, itemsize=2).nbytes == 4 * 10 * 4096 * 2
    assert roofline.glu(10, 100, itemsize=2).nbytes == 3 * 10 * 100 * 2
    assert roofline.sample(256, 152_000).nbytes == 256 * 152_000 * 4
    assert roofline.copy(100).nbytes == 200
    work = roofline.qkv_post(10, q_heads=4, kv_heads=2, head_dim=64, itemsize=2, kv_row=68)
    assert work.nbytes == 10 * (8 * 64 * 2 + 4 * 64 * 2 + 4 * 68)


def test_every_goal_is_ordered_from_must_to_stretch() -> None:
    for goal in GOALS.values():
        sign = -1 if goal.smaller_is_better else 1
        levels = [sign * level for level in (goal.must, goal.goal, goal.stretch)]
        assert levels == sorted(levels), goal.case


@pytest.mark.parametrize(
    ("value", "level"), [(0.97, "stretch"), (0.92, "goal"), (0.86, "must"), (0.5, "below must")]
)
def test_a_fraction_reaches_the_highest_level_it_passes(value: float, level: str) -> None:
    assert GOALS["decode >= 2 GB per layer"].level(value) == level


@pytest.mark.parametrize(("value", "level"), [(8, "stretch"), (12, "goal"), (18, "must"), (19, "below must")])
def test_a_time_reaches_a_level_from_above(value: float, level: str) -> None:
    assert GOALS["decode B1 n4k"].level(value) == level


def test_a_row_gets_the_figure_of_its_goal() -> None:
    timed = {"case": "x", "p20": 9.0, "p50": 10.0, "p80": 11.0, "bytes": 4.3e7 * 0.9, "flops": 4.8e9}
    bandwidth = report.finished({**timed, "goal": "decode B32 n4k"}, H200)
    assert bandwidth["value"] == pytest.approx(0.9)
    assert bandwidth["reached"] == "goal"
    assert bandwidth["fraction"] == pytest.approx(0.9)
    assert bandwidth["roofline_us"] == pytest.approx(9.0)
    assert report.finished({**timed, "goal": "decode B1 n4k"}, H200)["value"] == 10
    assert report.finished({**timed, "goal": "prefill causal 8k D128"}, H200)["value"] == pytest.approx(480)
    assert (
        report.finished({**timed, "goal": "experiment: two streams over one", "value": 0.8}, H200)["reached"]
        == "goal"
    )


def test_without_ceilings_no_fraction_is_made_up() -> None:
    row = report.finished({"case": "x", "p50": 10.0, "bytes": 1e6, "goal": "decode B32 n4k"}, None)
    assert not {"fraction", "roofline_us", "value", "reached"} & row.keys()
    assert row["must"] == 0.80


def test_what_the_first_case_measured_is_what_others_are_held_against() -> None:
    rows: list[report.Row] = [
        {"case": "a"},
        {"case": "ceilings", "copy_gbs": 4300, "read_gbs": 4500, "matmul_tflops": 790},
    ]
    assert report.ceilings_of(rows) == H200
    assert report.ceilings_of(rows[:1]) is None


def test_a_table_shows_measured_limit_and_goal_side_by_side() -> None:
    row = report.finished(
        {"case": "decode", "variant": "bf16", "p20": 1.0, "p50": 10.0, "p80": 2000.0, "bytes": 4.3e7 * 0.9,
         "flops": 0.0, "goal": "decode B32 n4k", "error": 2e-4},
        H200,
    )  # fmt: skip
    cells = dict(zip(report.COLUMNS, report.cells(row), strict=True))
    assert cells == {
        "case": "decode: bf16",
        "p20": "1.00",
        "p50": "10.0",
        "p80": "2,000",
        "measured": "90.0%",
        "roofline": "9.00 us",
        "fraction": "90.0%",
        "must": "80.0%",
        "goal": "90.0%",
        "stretch": "93.0%",
        "reached": "goal",
    }
    assert report.notes(row) == "error 0.0002"


def test_rows_without_a_goal_show_their_rate() -> None:
    moved = report.finished({"case": "copy", "p50": 10.0, "bytes": 4.3e7, "flops": 0.0}, H200)
    computed = report.finished({"case": "product", "p50": 10.0, "bytes": 0.0, "flops": 7.9e9}, H200)
    measured = report.COLUMNS.index("measured")
    assert report.cells(moved)[measured] == "4300 GB/s"
    assert report.cells(computed)[measured] == "790 TFLOP/s"


def test_without_rich_the_table_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.table", None)
    out = io.StringIO()
    report.show_table([{"case": "decode", "p50": 1.0}], "attention", out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "attention"
    assert lines[1].split() == list(report.COLUMNS)
    assert lines[2].split() == ["decode", "1.00"]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert report.plain_table(("a", "bb"), [("xxx", "y")]) == "a    bb\nxxx  y"


def test_rows_are_on_the_disk_as_soon_as_they_are_known(tmp_path: Path) -> None:
    file = report.RowFile(tmp_path / "new", "attention")
    file.add({"case": "a"})
    text = (tmp_path / "new" / "gpu_attention.jsonl").read_text()
    file.close()
    assert json.loads(text) == {"case": "a"}


def test_newer_rows_of_a_case_take_the_place_of_older_ones(tmp_path: Path) -> None:
    def lines() -> list[tuple[str, int]]:
        text = (tmp_path / "gpu_check.jsonl").read_text()
        return [(row["case"], row["n"]) for row in map(json.loads, text.splitlines())]

    for n in (1, 2):
        file = report.RowFile(tmp_path, "check")
        for case in ("a", "b", "a") if n == 1 else ("b", "c", "b"):
            file.add({"case": case, "n": n})
        file.close()
    assert lines() == [("a", 1), ("a", 1), ("b", 2), ("c", 2), ("b", 2)]
    report.RowFile(tmp_path, "check").close()
    assert len(lines()) == 5


def test_the_commit_is_given_or_named_by_the_environment_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRI_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit_of(tmp_path, None) == "unknown"
    monkeypatch.setenv("AIRI_COMMIT", "abc")
    assert report.commit_of(tmp_path, None) == "abc"
    assert report.commit_of(tmp_path, "def") == "def"


def test_rows_say_where_they_come_from() -> None:
    found = report.provenance({"gpu": "H200", "torch": "2.11"}, "abc", ["python", "-m", "x", "--only", "a b"])
    assert found.keys() == {"gpu", "torch", "commit", "date", "command"}
    assert found["command"] == "python -m x --only 'a b'"


def test_a_budget_counts_down_and_never_below_zero() -> None:
    now = 100.0
    budget = Budget(10, clock=lambda: now)
    assert budget.allows(10)
    now = 104.0
    assert (budget.spent, budget.left) == (4, 6)
    assert not budget.allows(6.5)
    now = 200.0
    assert budget.left == 0


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds is 0, accepted is more than 0"):
        Budget(0)


def test_a_goal_of_smaller_figures_is_known_by_its_levels() -> None:
    assert Goal(case="x", unit="us", must=8, goal=4, stretch=3).smaller_is_better
    assert not Goal(case="x", unit="tflops", must=3, goal=4, stretch=8).smaller_is_better
