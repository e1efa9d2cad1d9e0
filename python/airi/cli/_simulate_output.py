"""What `airi simulate` writes: progress, reports, files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.simulate import Generator, Report, Trace

__all__ = ["check_writable", "row_writer", "show_progress", "show_report", "write_text"]


@contextlib.contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends rows of requests to a CSV file."""
    import csv

    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            started = False

            def write(found: Any) -> None:
                nonlocal started
                if not started:
                    writer.writerow(found.dtype.names)
                    started = True
                writer.writerows(found.tolist())

            yield write
    except OSError as error:
        raise ConfigError(f"rows {path}: {error.strerror or error}", field="rows") from None


def check_writable(option: str, path: Path) -> None:
    """Raises ConfigError for a file that could not be written in the end; leaves things as they are."""
    try:
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}", field=option) from None


def write_text(option: str, path: Path, text: str) -> None:
    """Writes a file; ConfigError names the option that it was given by."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}", field=option) from None


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[int, float], None]]:
    """A line on stderr that says how far the simulation is; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading the trace")
        yield lambda requests, seconds: bar.update(
            task, description=f"{requests:,} requests, {seconds:,.0f} simulated seconds"
        )


def show_report(report: Report, file: Trace | Generator, *, as_json: bool, with_timeline: bool) -> None:
    """The report on stdout: one JSON object, or tables."""
    if as_json:
        from dataclasses import asdict

        figures = {"trace": file.name, **report.figures}
        for tenant in figures["tenants"]:
            tenant["tenant"] = file.tenant_names.get(tenant["tenant"], tenant["tenant"])
        if with_timeline:
            figures["timeline"] = [asdict(point) for point in report.timeline]
        typer.echo(json.dumps(figures))
        return
    from airi.simulate.table import show

    show(report, file.name, file.tenant_names)
