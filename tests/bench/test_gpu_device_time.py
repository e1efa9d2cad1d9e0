"""What a trace says of the time that a device was busy, against counting microsecond by microsecond."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benches.gpu.device_time import Interval, intervals_of, outside_of, traced, union_us


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12))
def test_the_union_counts_every_microsecond_once(spans: list[tuple[int, int]]) -> None:
    intervals = [(float(begin), float(begin + length)) for begin, length in spans]
    covered = {at for begin, length in spans for at in range(begin, begin + length)}
    assert union_us(intervals) == len(covered)


def test_only_what_ran_on_the_device_is_taken_from_a_trace() -> None:
    trace = json.loads(
        """{"traceEvents": [
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 10.5, "dur": 2.25},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 20, "dur": 1},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset", "ts": 21, "dur": 1},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 99},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "step", "ts": 0, "dur": 99},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 99},
        {"ph": "M", "name": "process_name", "ts": 0},
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 0}
        ]}"""
    )
    assert intervals_of(trace) == [(10.5, 12.75), (20, 21), (21, 22)]


def test_what_is_not_busy_is_outside() -> None:
    intervals: list[Interval] = [(0, 40), (30, 50), (50, 90), (110, 200)]
    found = outside_of([95, 105], intervals, 2)
    assert found is not None
    assert (found.wall_us, found.busy_us, found.events) == (100, 90, 2)
    assert found.share == pytest.approx(0.10)
    assert found.while_traced == pytest.approx(0.10)


def test_gaps_that_tracing_makes_are_not_held_against_the_loop() -> None:
    found = outside_of([100], [(0, 95), (195, 290)], 2)
    assert found is not None
    assert found.share == pytest.approx(0.05)
    assert found.while_traced == pytest.approx(100 / 290)


def test_a_trace_without_a_device_says_nothing() -> None:
    with traced(on_device=False) as intervals:
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert intervals == []
    assert outside_of([100.0], intervals, 4) is None
