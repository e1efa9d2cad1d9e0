"""`python -m tools.compile_gate [--arch sm_90 ...] [--kernel NAME] [--jobs N]`: exit status 1 when a kernel fails."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from airi.kernels.arch import ARCHS

from .pool import Verdict, check

BUILD = Path(__file__).resolve().parents[2] / "build"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.compile_gate", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS))
    parser.add_argument("--kernel", default="", help="only variants whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="only the path of a Llama-3-8B shape in bf16")
    parser.add_argument(
        "--table", default="airi.kernels.shipped", help="module whose variants(arch) are compiled"
    )
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    return parser.parse_args(argv)


def select(args: argparse.Namespace) -> list[Any]:
    """The variants that `args` asks for."""
    table = importlib.import_module(args.table)
    extra = {"quick": True} if args.quick else {}
    return [v for arch in args.arch for v in table.variants(arch, **extra) if args.kernel in v.name]


def run(variants: list[Any], jobs: int, console: Console) -> list[Verdict]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    verdicts = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=len(variants))
        for verdict in check(variants, jobs):
            verdicts.append(verdict)
            progress.update(task, advance=1, description=f"{verdict.arch} {verdict.name}")
    order = {(v.arch, v.name): i for i, v in enumerate(variants)}
    names = list(dict.fromkeys(v.name for v in variants))
    return sorted(verdicts, key=lambda v: (names.index(v.name), order[v.arch, v.name]))


def table_of(verdicts: Iterable[Verdict]) -> Table:
    table = Table(
        "kernel", "arch", *_right("regs", "spills", "shared KiB", "matrix", "wide/narrow B", "s"), ""
    )
    for v in verdicts:
        m = v.measured
        found = ["-"] * 5
        if m is not None:
            loads = "tiles" if m.tile_loads else f"{m.wide_bytes}/{m.narrow_bytes}"
            products = f"{m.async_products} async" if m.async_products else str(m.matrix_products)
            spills = m.spilled_bytes or m.local_accesses
            found = [str(m.registers), str(spills), f"{m.shared_bytes / 1024:.1f}", products, loads]
        table.add_row(v.name, v.arch, *found, f"{v.seconds:.1f}", "[red]FAIL" if v.findings else "ok")
    return table


def _right(*names: str) -> list[Any]:
    return [Column(name, justify="right") for name in names]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console(stderr=True)
    if os.environ.get("TRITON_INTERPRET"):
        console.print("TRITON_INTERPRET is set, so that no kernel would be compiled: unset it")
        return 2
    os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "triton-cache"))
    variants = select(args)
    if not variants:
        console.print(f"no kernel of {args.table} matches --kernel {args.kernel!r} on {', '.join(args.arch)}")
        return 2
    verdicts = run(variants, args.jobs, console)
    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(table_of(verdicts))
    failed = [line for verdict in verdicts for line in verdict.lines()]
    for line in failed:
        out.print(f"FAIL {line}", markup=False, highlight=False, soft_wrap=True)
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(v) for v in verdicts], indent=1))
    out.print(f"{len(verdicts)} compiled, {sum(bool(v.findings) for v in verdicts)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
