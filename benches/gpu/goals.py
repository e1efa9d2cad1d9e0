"""What each case is to reach on an H200, as data: fractions of the copy bandwidth measured in the same run, others as
their unit says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["bandwidth", "us", "tflops", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Three levels of one figure."""

    case: str
    unit: Unit
    must: float
    goal: float
    stretch: float

    @property
    def smaller_is_better(self) -> bool:
        return self.must > self.stretch

    def level(self, value: float) -> str:
        """The highest level that `value` reaches: "stretch", "goal", "must", or "below must"."""
        sign = -1.0 if self.smaller_is_better else 1.0
        for name in ("stretch", "goal", "must"):
            if sign * value >= sign * getattr(self, name):
                return name
        return "below must"


def _goals(unit: Unit, *rows: tuple[str, float, float, float]) -> list[Goal]:
    return [Goal(case=case, unit=unit, must=must, goal=goal, stretch=s) for case, must, goal, s in rows]


_ALL = [
    *_goals(
        "bandwidth",
        ("decode >= 2 GB per layer", 0.85, 0.92, 0.96),
        ("decode B32 n4k", 0.80, 0.90, 0.93),
        ("decode B8 n32k", 0.75, 0.88, 0.92),
        ("decode B1 n128k", 0.75, 0.88, 0.92),
        ("decode B1 n32k", 0.55, 0.70, 0.80),
        ("decode skewed B64", 0.75, 0.86, 0.92),
        ("decode fp8 B128 n8k", 0.65, 0.80, 0.88),
        ("qkv_post 8k tokens", 0.65, 0.80, 0.88),
        ("add_rms_norm 8k x 4096", 0.75, 0.88, 0.93),
        ("block copy", 0.80, 0.90, 0.95),
        ("engine decode B1", 0.80, 0.80, 0.90),
        ("engine decode B32", 0.80, 0.80, 0.90),
    ),
    *_goals(
        "us",
        ("decode B1 n4k", 18, 12, 9),
        ("qkv_post B256", 8, 5, 4),
        ("sample top-k top-p B64", 120, 60, 40),
        ("sample top-k top-p B256", 400, 180, 120),
        ("sample greedy B256", 60, 45, 40),
        ("plan B256", 8, 4, 3),
    ),
    *_goals(
        "tflops",
        ("prefill causal 8k D64", 300, 360, 420),
        ("prefill causal 8k D128", 400, 480, 560),
        ("prefill causal 8k D256", 360, 450, 520),
        ("prefill q2048 context 30k", 400, 490, 570),
        ("prefill q512 context 8k", 250, 320, 400),
    ),
    *_goals(
        "ratio",
        ("layout probe", 0.97, 0.98, 1.0),
        ("block-major over layer-major", 0.95, 0.98, 1.0),
        ("fp8 context over bf16", 0.85, 0.92, 0.97),
        ("experiment: two streams over one", 0.95, 0.82, 0.72),
        ("decode over vLLM's Triton", 1.0, 1.15, 1.3),
        ("prefill over vLLM's Triton", 3.0, 4.5, 6.0),
        ("decode over the best peer", 0.90, 1.0, 1.05),
        ("prefill over the best peer", 0.70, 0.82, 0.92),
        ("engine outside the device B256", 0.03, 0.03, 0.01),
    ),
]
GOALS = {goal.case: goal for goal in _ALL}
"""By case. Cascade, MLA and non-causal attention have goals of their own once there is a kernel for them."""
