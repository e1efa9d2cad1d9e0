"""The workload of bench_step, for both sides: 256 slots that are always full, and a queue behind them."""

from __future__ import annotations

RUNNING = 256
PROMPT = 512
SHARED = 256
"""Tokens at the start of a prompt that others have too."""
OUTPUT = (32, 96)
"""Tokens of an answer, from and to, both included."""
STEP_US = 10_000
WARM_STEPS = 150
