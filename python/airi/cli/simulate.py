"""`airi simulate`: a trace of requests through simulated replicas of the scheduler."""

from __future__ import annotations

import contextlib
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from airi.cli._flags import given_names, takes_groups
from airi.cli._simulate_flags import FleetFlags, OutputFlags, ReplayFlags, TraceFlags
from airi.cli._simulate_output import check_writable, row_writer, show_progress, show_report, write_text
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.simulate import Report, SimulationOptions, StepTime
    from airi.simulate.batches import Stream
    from airi.simulate.replay import Replay


@takes_groups
def simulate(trace: TraceFlags, fleet: FleetFlags, replay: ReplayFlags, output: OutputFlags) -> None:
    """Play a trace of requests through the scheduler itself, under virtual time.

    Replicas run the very code that serves; only the model is replaced, by a formula for how long a step
    takes. The same command gives the same figures.
    """
    if [trace.trace, trace.generate, replay.replay].count(None) != 2:
        raise ConfigError("give --trace FILE, --generate rate=... or --replay FILE", field="trace")
    if replay.fit_step_time is not None and replay.replay is None:
        raise ConfigError("fit_step_time needs --replay FILE", field="fit_step_time")
    if replay.replay is not None:
        for name in (*given_names(trace), *given_names(fleet), *given_names(output)):
            if name != "json":
                raise ConfigError(
                    f"{name} does not go with --replay: a recording has its own requests and settings",
                    field=name,
                )
        _replay(replay.replay, replay.fit_step_time, as_json=output.json)
        return
    if output.timeline and not output.json:
        raise ConfigError("timeline is part of the JSON object; give --json too", field="timeline")
    file = trace.source()
    options = fleet.options(trace, file, keep_rows=output.rows is not None)
    stream = trace.stream(file)
    plot = output.plot
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise ConfigError(f"plot is {str(plot)!r}; give a file that ends in .svg", field="plot")
        check_writable("plot", plot)
    report = _run(stream, options, output.rows)
    if plot is not None:
        from airi.simulate.plot import draw

        title = f"{file.name} on {fleet.replicas} x {report.figures['settings']['step_time']}"
        write_text("plot", plot, draw(report, title=title))
    show_report(report, file, as_json=output.json, with_timeline=output.timeline)


def _replay(path: Path, fit: Path | None, *, as_json: bool) -> None:
    from airi.simulate.replay import replay

    if fit is not None:
        check_writable("fit_step_time", fit)
    with show_progress() as progress:
        found = replay(path, progress=progress)
    if fit is not None:
        _fitted(found, path).save(fit)
    if as_json:
        names = ("records", "steps", "requests", "difference", "is_cut")
        typer.echo(jsonlib.dumps({name: getattr(found, name) for name in names}))
    else:
        verdict = found.difference or "every plan is the same, byte for byte"
        typer.echo(f"{found.requests:,} requests, {found.steps:,} steps: {verdict}")
        if found.is_cut:
            typer.echo("the file ends within a record; what comes before it was replayed", err=True)
    if found.difference is not None:
        raise typer.Exit(1)


def _fitted(found: Replay, path: Path) -> StepTime:
    from airi.simulate import StepTime

    if len(found.step_times) > 1:
        raise ConfigError(
            f"{path}: steps of {len(found.step_times)} models cannot be fitted at once; record one alone",
            field="fit_step_time",
        )
    for model, steps in found.step_times.values():
        if model.is_trained:
            return StepTime.fit(model, steps, source=f"fitted to {path.name}")
    raise ConfigError(
        f"{path}: {found.steps} steps are too few to fit; 32 with prefills and 32 without are needed",
        field="fit_step_time",
    )


def _run(stream: Stream, options: SimulationOptions, rows: Path | None) -> Report:
    from airi.simulate import simulate as run

    with show_progress() as progress, contextlib.ExitStack() as stack:
        on_rows = None if rows is None else stack.enter_context(row_writer(rows))
        return run(stream(), options, progress=progress, on_rows=on_rows)
