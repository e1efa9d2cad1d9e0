"""What the bench of routing asks, and how it judges."""

from __future__ import annotations

from typing import Any

import pytest

from benches.bench_routing import CANDIDATES, check, cost_rows, event_cost, judged, played
from tests.sim.samples import FAST, random_batch


@pytest.mark.parametrize("tokens", [500, 8_000])
def test_candidates_have_what_sets_have(tokens: int) -> None:
    check(tokens)


def test_every_cost_is_measured() -> None:
    rows = cost_rows(4096, turns=1, calls=4)
    assert [row["variant"] for row in rows[:-1]] == ["500 tokens", "8000 tokens", "64000 tokens"]
    assert all(row["candidates"] == CANDIDATES and row["us_sent_and_ended"] > 0 for row in rows[:-1])
    assert rows[-1]["us_per_event"] > 0


def test_events_find_room() -> None:
    assert event_cost(8192, turns=2)["events_per_call"] == 2048


def test_work_is_counted_by_replica() -> None:
    whole = random_batch(3, 200, gap_us=500)
    row = played(lambda: [whole], "locality", 2.0, step_time=FAST, kv_blocks=64, part_tokens=32)
    assert 1 <= row["imbalance"] < 4
    assert row["ttft_ms_p50"] > 0


def test_the_better_blind_router_is_the_measure() -> None:
    def row(variant: str, p90: float) -> dict[str, Any]:
        return {"variant": variant, "speed": 1.25, "ttft_ms_p90": p90, "imbalance": 1.31}

    fleet = [row("round_robin", 100), row("least_loaded", 80), row("prefix", 1), row("locality", 60)]
    ttft, imbalance = judged(fleet)
    assert (ttft["peer"], ttft["ratio"], ttft["reached"]) == (80, 0.75, False)
    assert not imbalance["reached"]
    assert judged([*fleet[:3], row("locality", 48)])[0]["reached"]
