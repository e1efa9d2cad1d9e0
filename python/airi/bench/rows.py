"""Rows of figures: percentiles, where they were measured, JSON lines or a table."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airi

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Row",
    "Timings",
    "cpu_name",
    "distribution",
    "percentile",
    "provenance",
    "show_progress",
    "show_rows",
]

Row = dict[str, Any]
_PERCENTILES = (50, 90, 95, 99)


def percentile(values: Sequence[float], q: float) -> float:
    """The value that q percent of `values` do not exceed, between neighbours in proportion (as numpy)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """`<name>_ms_mean` and percentiles in milliseconds; nothing where there are no values."""
    if not seconds:
        return {}
    found = {f"{name}_ms_mean": sum(seconds) / len(seconds)}
    found |= {f"{name}_ms_p{q}": percentile(seconds, q) for q in _PERCENTILES}
    return {key: round(value * 1000, 3) for key, value in found.items()}


class Timings:
    """When the tokens of one request came, in seconds of one clock.

    Time to first token (ttft), between tokens (itl; tokens that come together share the wait of
    their message once), per output token after the first (tpot), end to end (e2e): as `vllm bench serve` has them.
    """

    def __init__(self, sent: float) -> None:
        self.sent = sent
        self.times: list[float] = []
        self.num_tokens = 0

    def arrived(self, now: float, tokens: int) -> None:
        """`tokens` came in one message."""
        self.times.append(now)
        self.num_tokens += tokens

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.times[-1] - self.sent

    @property
    def itl(self) -> list[float]:
        return [b - a for a, b in zip(self.times[:-1], self.times[1:], strict=True)]

    @property
    def tpot(self) -> float | None:
        return (self.e2e - self.ttft) / (self.num_tokens - 1) if self.num_tokens > 1 else None


def summary(timings: Sequence[Timings], *, prompt_tokens: int, duration: float) -> Row:
    """Throughput and latencies of requests that have ended."""
    output_tokens = sum(t.num_tokens for t in timings)
    row: Row = {
        "completed": len(timings),
        "duration_s": round(duration, 3),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "request_s": round(len(timings) / duration, 3),
        "output_tok_s": round(output_tokens / duration, 1),
        "total_tok_s": round((prompt_tokens + output_tokens) / duration, 1),
    }
    row |= distribution("ttft", [t.ttft for t in timings])
    row |= distribution("tpot", [t.tpot for t in timings if t.tpot is not None])
    row |= distribution("itl", [gap for t in timings for gap in t.itl])
    row |= distribution("e2e", [t.e2e for t in timings])
    return row


def provenance() -> Row:
    """Version, hardware and date of a measurement."""
    return {
        "airi": airi.__version__,
        "hardware": f"{os.cpu_count()} x {cpu_name()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """Rows on stdout: a JSON object per line with its provenance, or a table."""
    import typer

    source = provenance()
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row | source))
        return
    from rich.console import Console

    console = Console()
    if len(rows) > 1:
        console.print(_side_by_side(rows))
    else:
        for table in _one_row(rows[0]):
            console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in source.items()), style="dim", highlight=False)


def _side_by_side(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table()
    for key in keys:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*[_shown(row.get(key)) for key in keys])
    return table


def _one_row(row: Row) -> list[Table]:
    """The row's figures one below the other, and its distributions with a line each."""
    from rich.table import Table

    figures = Table(show_header=False)
    times = Table("milliseconds", "mean", *[f"p{q}" for q in _PERCENTILES])
    for key, value in row.items():
        name, _, statistic = key.rpartition("_ms_")
        if not name:
            figures.add_row(key, _shown(value))
        elif statistic == "mean":
            every = [value, *[row[f"{name}_ms_p{q}"] for q in _PERCENTILES]]
            times.add_row(name, *[_shown(v) for v in every])
    return [figures, times] if times.row_count else [figures]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on stderr by so many; draws nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.update(task, advance=count)
