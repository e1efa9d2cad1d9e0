"""From what workers measured to rows with a limit and a goal, a table, and a file."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from benches.gpu.goals import GOALS, Goal
from benches.gpu.roofline import Ceilings, Work, least_us

Row = dict[str, Any]

COLUMNS = (
    "case",
    "p20",
    "p50",
    "p80",
    "measured",
    "roofline",
    "fraction",
    "must",
    "goal",
    "stretch",
    "reached",
)
FIGURES = {
    *("p20", "p50", "p80", "n", "how", "unit", "value", "fraction", "roofline_us", "reached", "verdict"),
    *("copy_gbs", "read_gbs", "matmul_tflops", "over_layer_major", "over_airi", "best", "tok_s", "refused"),
    *("between_steps", "wall_us", "busy_us", "while_traced", "events"),
}
"""Keys of a row that only a GPU can fill."""
_INNER = ("verdict", "bytes", "flops", "how", "unit", "variant", "suite", "goal_case", "value")


def ceilings_of(rows: Sequence[Row]) -> Ceilings | None:
    """What the first case of a timed suite measured; None where it did not run."""
    for row in rows:
        if "copy_gbs" in row:
            return Ceilings(
                copy_gbs=row["copy_gbs"], read_gbs=row["read_gbs"], matmul_tflops=row["matmul_tflops"]
            )
    return None


def finished(row: Row, ceilings: Ceilings | None) -> Row:
    """The row with its least time, the fraction of it that was reached, and the goal's levels."""
    out = dict(row)
    goal = GOALS.get(row.get("goal", ""))
    out.pop("goal", None)
    work = Work(nbytes=row.get("bytes", 0.0), flops=row.get("flops", 0.0))
    if ceilings is not None and row.get("p50") and (work.nbytes or work.flops):
        least = least_us(work, ceilings)
        out |= {"roofline_us": round(least, 3), "fraction": round(least / row["p50"], 4)}
    value = figure(row, goal, ceilings)
    if goal is not None:
        out |= {"goal_case": goal.case, "goal_unit": goal.unit}
        out |= {"must": goal.must, "goal": goal.goal, "stretch": goal.stretch}
        if value is not None:
            out |= {"value": round(value, 4), "reached": goal.level(value)}
    return out


def figure(row: Row, goal: Goal | None, ceilings: Ceilings | None) -> float | None:
    """The row's figure in its goal's unit; None where something it takes was not measured."""
    if "value" in row:
        return float(row["value"])
    if goal is None or not row.get("p50"):
        return None
    us = float(row["p50"])
    if goal.unit == "us":
        return us
    if goal.unit == "tflops":
        return float(row["flops"]) / us * 1e-6
    if goal.unit == "bandwidth" and ceilings is not None:
        return float(row["bytes"]) / us * 1e-3 / ceilings.copy_gbs
    return None


def cells(row: Row) -> list[str]:
    """The row as the table shows it."""
    unit = row.get("goal_unit", "")
    value = row.get("value")
    rate = ""
    if row.get("p50") and value is None:
        if row.get("flops", 0) > 100 * row.get("bytes", 0):
            rate = f"{row['flops'] / row['p50'] * 1e-6:.0f} TFLOP/s"
        elif row.get("bytes"):
            rate = f"{row['bytes'] / row['p50'] * 1e-3:.0f} GB/s"
    shown = rate if value is None else _figure(value, unit)
    roof = row.get("roofline_us")
    fraction = row.get("fraction")
    return [
        f"{row['case']}: {row['variant']}" if row.get("variant") else row["case"],
        *[_us(row.get(key)) for key in ("p20", "p50", "p80")],
        shown,
        f"{_us(roof)} us" if roof is not None else "",
        f"{fraction:.1%}" if fraction is not None else "",
        *[_figure(row[key], unit) if key in row else "" for key in ("must", "goal", "stretch")],
        row.get("reached", ""),
    ]


def notes(row: Row) -> str:
    """Figures of the row that have no column."""
    known = {*COLUMNS, *_INNER, "n", "roofline_us", "goal_unit"}
    return ", ".join(f"{key} {value}" for key, value in row.items() if key not in known)


def _figure(value: float, unit: str) -> str:
    if unit == "bandwidth":
        return f"{value:.1%}"
    if unit == "tflops":
        return f"{value:.0f} TFLOP/s"
    return f"{_us(value)} us" if unit == "us" else f"{value:.3g}x"


def _us(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show_table(rows: Sequence[Row], title: str, file: TextIO) -> None:
    """With rich where it is installed, else in columns of plain text; times in microseconds."""
    lines = [cells(row) for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title, file=file)
        print(plain_table(COLUMNS, lines), file=file)
    else:
        table = Table(*COLUMNS, title=title)
        for line in lines:
            table.add_row(*line)
        # A file or a pipe has no width of its own; folded columns would be hard to read there.
        Console(file=file, width=None if file.isatty() else 200).print(table)
    for row in rows:
        if notes(row):
            print(
                f"{row['case']}{': ' + row['variant'] if row.get('variant') else ''}: {notes(row)}", file=file
            )


def plain_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    )


def provenance(hardware: dict[str, str], commit: str, command: Sequence[str]) -> Row:
    """Where and from what rows come."""
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {**hardware, "commit": commit, "date": today, "command": shlex.join(command)}


def commit_of(root: Path, given: str | None) -> str:
    """`given`, else AIRI_COMMIT, else what git says of `root`, else "unknown"."""
    named = given or os.environ.get("AIRI_COMMIT")
    if named:
        return named
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=root, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


class RowFile:
    """`gpu_<suite>.jsonl`, a row per line, on the disk as soon as it is known; nothing without a folder.

    Rows that are there stay until there are newer ones of their case: a run that ends early, or of some cases only,
    loses nothing of the run before.
    """

    def __init__(self, folder: Path | None, suite: str) -> None:
        self._path = None if folder is None else folder / f"gpu_{suite}.jsonl"
        self._file: TextIO | None = None
        self._cases: set[str] = set()

    def add(self, row: Row) -> None:
        if self._path is None:
            return
        if row["case"] not in self._cases:
            self._cases.add(row["case"])
            self._drop_older(self._path, row["case"])
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _drop_older(self, path: Path, case: str) -> None:
        """Rewrites the file without a case's rows, where it has some."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if json.loads(line)["case"] != case]
        if len(kept) == len(lines):
            return
        self.close()
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(kept), encoding="utf-8")
        fresh.replace(path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
