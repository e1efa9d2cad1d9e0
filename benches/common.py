"""What benches share: running contestants in turn, and rows that say where they come from."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airi.bench.rows import cpu_name

ROOT = Path(__file__).resolve().parents[1]
CONTESTANTS = ROOT / "benches" / "contestants"


def plain_parser(description: str | None, *peers: str) -> argparse.ArgumentParser:
    """What all benches say of themselves, `--json`, and a flag for each peer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one per line")
    for peer in peers:
        add_peer_flag(parser, peer)
    return parser


def bench_parser(description: str | None, *peers: str) -> argparse.ArgumentParser:
    """The flags that the benches of whole engines share, and one for each peer."""
    parser = plain_parser(description, *peers)
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where the random checkpoint is kept"
    )
    parser.add_argument("--turns", type=int, default=3)
    return parser


def add_peer_flag(parser: argparse.ArgumentParser, peer: str) -> None:
    """`--<peer>-python PATH`: the interpreter of the virtual environment that has the peer."""
    parser.add_argument(
        f"--{peer}-python",
        metavar="PATH",
        help=f"interpreter of an environment that has {peer}; left out, {peer} is not run",
    )


def run_contestant(
    python: str, script: str, arguments: Sequence[str], *, timeout_s: float = 1200
) -> dict[str, Any]:
    """Runs one contestant in its own process and returns the JSON object on its last line.

    Raises RuntimeError with the end of its stderr where it fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if python == sys.executable:
        command = [python, "-m", f"benches.contestants.{script}", *arguments]
    else:
        command = [python, str(CONTESTANTS / f"{script}.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def provenance() -> dict[str, str]:
    """Hardware, commit, date and command of this run."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    return {
        "hardware": f"{os.cpu_count()} x {cpu_name()}",
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", f"benches.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def verdict(
    name: str, ours: float, theirs: float, target: float, *, unit: str, smaller_is_better: bool = False
) -> dict[str, Any]:
    """One comparison: the ratio ours / theirs against the ratio to reach."""
    ratio = ours / theirs
    reached = ratio <= target if smaller_is_better else ratio >= target
    return {
        "question": name,
        "ours": round(ours, 4),
        "peer": round(theirs, 4),
        "unit": unit,
        "ratio": round(ratio, 3),
        "target": f"{'<=' if smaller_is_better else '>='} {target}",
        "reached": reached,
    }


def median(rounds: Sequence[dict[str, float]], key: str) -> float:
    """Median of one figure over rounds."""
    return statistics.median(r[key] for r in rounds)


def print_rows(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Rows as JSON lines with provenance, or as text for people."""
    source = provenance()
    if as_json:
        for row in rows:
            print(json.dumps({**row, **source}))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print("  ".join(f"{key}: {value}" for key, value in source.items()))
