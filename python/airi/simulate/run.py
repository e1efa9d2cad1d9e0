"""Runs a trace through simulated replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.resources import usable_cores
from airi.errors import ConfigError
from airi.simulate.batches import PIECE_ROWS, Batch, in_pieces
from airi.simulate.options import SimulationOptions
from airi.simulate.report import Report

__all__ = ["Simulation", "simulate"]

Progress = Callable[[int, float], None]
"""Called with requests read so far and simulated seconds."""

_DRAIN_US = 60_000_000


class Simulation:
    """A fleet that requests are fed to, in order of arrival; `report` says what became of them.

    *Thread safety*: none.
    """

    def __init__(self, options: SimulationOptions) -> None:
        """Makes the replicas; raises ConfigError."""
        self.options = options
        self.requests = 0
        """Fed so far."""
        targets = {
            "ttft_us": None if options.ttft_ms is None else round(options.ttft_ms * 1000),
            "itl_us": None if options.itl_ms is None else round(options.itl_ms * 1000),
        }
        try:
            self._core = _core.sim.Simulator(
                runtime=options.runtime_config(),
                model=options.model_config(),
                step_time=options.times.as_tuples(),
                step_ratios=[options.times.memory.ratios, options.times.arithmetic.ratios],
                replicas=options.replicas,
                router=options.router,
                load_guard=options.load_guard,
                part_tokens=options.part_tokens,
                concurrency=options.concurrency,
                keep_rows=options.keep_rows,
                threads=options.threads or min(usable_cores(), 256),
                **targets,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except MemoryError:
            raise ConfigError("there is not enough memory for the replicas") from None
        for tenant, weight in options.tenant_weights.items():
            try:
                self._core.set_tenant(tenant, weight)
            except ValueError as error:
                raise ConfigError(f"weight of tenant {tenant}: {error}", field="tenant_weights") from None

    @property
    def simulated_s(self) -> float:
        """The present of the simulation."""
        return self._core.now_us / 1e6

    def feed(self, batch: Batch) -> None:
        """Lets the requests of a batch arrive; raises ConfigError where they cannot, as out of order."""
        try:
            self._core.feed(
                arrival_us=batch.arrival_us,
                tenant=batch.tenant,
                band=batch.band,
                input_tokens=batch.input_tokens,
                output_tokens=batch.output_tokens,
                part_start=batch.part_start,
                parts=batch.parts,
            )
        except ValueError as error:
            raise ConfigError(str(error), field="trace") from None
        self.requests += len(batch)

    def drain(self) -> bool:
        """Runs a simulated minute without arrivals; returns whether anything is left to do."""
        return self._core.drain(_DRAIN_US)

    def take_rows(self) -> NDArray[np.void]:
        """Exact figures of the requests that finished since the last call; needs `keep_rows`."""
        return self._core.take_rows()

    def results(self) -> dict[str, Any]:
        """The core's figures so far."""
        return self._core.results()


def simulate(
    batches: Iterable[Batch],
    options: SimulationOptions,
    *,
    progress: Progress | None = None,
    on_rows: Callable[[NDArray[np.void]], None] | None = None,
) -> Report:
    """Feeds all batches, runs until every request has ended, and reports.

    With `on_rows` and `options.keep_rows`, exact rows of requests are handed on as they finish.
    """
    began = time.perf_counter()
    simulation = Simulation(options)

    def advanced() -> None:
        if progress is not None:
            progress(simulation.requests, simulation.simulated_s)
        if on_rows is not None:
            on_rows(simulation.take_rows())

    for batch in batches:
        for piece in in_pieces(batch, PIECE_ROWS):
            simulation.feed(piece)
            advanced()
    while simulation.drain():
        advanced()
    advanced()
    return Report.of(
        simulation.results(), options, requests=simulation.requests, wall_s=time.perf_counter() - began
    )
