"""Simulations: the product's own scheduler over traces of requests, under virtual time.

from airi.simulate import SimulationOptions, Trace, simulate

report = simulate(Trace("trace.csv").batches(), SimulationOptions(replicas=4))
report.figures["ttft_ms"]["p99"]
"""

from __future__ import annotations

from airi.simulate.batches import Batch
from airi.simulate.generate import Generator
from airi.simulate.options import SimulationOptions
from airi.simulate.report import Report, TimelinePoint
from airi.simulate.run import Simulation, simulate
from airi.simulate.step_time import PRESETS, StepTime
from airi.simulate.traces import Trace

__all__ = [
    "PRESETS",
    "Batch",
    "Generator",
    "Report",
    "Simulation",
    "SimulationOptions",
    "StepTime",
    "TimelinePoint",
    "Trace",
    "simulate",
]
