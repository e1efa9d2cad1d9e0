"""The bench of activation takes a model that sleeps, and sees that it says the same afterwards."""

from __future__ import annotations

from airi import LLM
from benches.bench_activation import measure


def test_every_time_is_measured() -> None:
    with LLM("airi-demo", sleepable=True, kv_memory=64 << 20) as llm:
        found = measure(llm, 1 << 20, turns=2)
    assert set(found) == {"awake_s", "sleep_s", "copy_s", "mapped_s", "wake_s", "answer_s"}
    assert all(value > 0 for value in found.values())
