"""The benches of replicas: nothing is lost, what they count is right, and times are of the same answers."""

from __future__ import annotations

from benches import bench_added_ttft, bench_lost
from benches.engines_behind import Ended, _how


async def test_a_killed_engine_loses_nothing_silently() -> None:
    (killed,) = (each for each in bench_lost.SCENARIOS if each.name.startswith("SIGKILL"))
    ends = await bench_lost.run_scenario(killed, 8, before_s=0.5, after_s=0.5)
    row = bench_lost.row_of(killed.name, ends)
    assert row["reached"], row
    assert row["answered"] >= 8


def test_what_is_lost_counts() -> None:
    ends = [Ended("answered", 0.0, 1.0), Ended("cut", 0.0, 1.0), Ended("refused", 0.0, None)]
    assert bench_lost.row_of("reload", ends)["lost"] == 2
    assert not bench_lost.row_of("reload", ends)["reached"]
    unbegun = bench_lost.row_of("SIGKILL of one", [Ended("error", 0.0, None)])
    assert (unbegun["errors_unbegun"], unbegun["reached"]) == (1, False)
    assert bench_lost.row_of("SIGKILL of one", [Ended("error", 0.0, 1.0)])["reached"]
    assert not bench_lost.row_of("reload", [Ended("error", 0.0, 1.0)])["reached"]


def test_an_end_is_what_the_server_says() -> None:
    assert _how(b'x"finish_reason":"length"}\n\ndata: [DONE]\n\n') == "answered"
    assert _how(b'data: {"error":{}}\n\ndata: [DONE]\n\n') == "error"
    assert _how(b'data: {"choices":[]}\n\n') == "cut"


async def test_times_to_first_token_are_measured() -> None:
    rows = await bench_added_ttft.run(5, 64)
    assert [row["question"].rsplit(", ")[1] for row in rows] == ["gateway", "three replicas"]
    assert all(row["added_ms"] > 0 for row in rows)
