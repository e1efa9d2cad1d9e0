"""Is AIRI right on this GPU, and how fast is it? One command per suite, each under nine minutes, without a network.

    python -m benches.gpu.run --suite check        every kernel against float64; begin with this one
    python -m benches.gpu.run --suite attention    layouts, decode, prefill and the small kernels against their limits
    python -m benches.gpu.run --suite engine       a Llama-3-8B shape with random weights
    python -m benches.gpu.run --suite peers        the same inputs to torch, FlexAttention, FlashInfer, vLLM's kernels

What the figures do not mean: they are of one device in the state it is found in, at shapes chosen for their limits, not
a served workload. A result that is wrong shows no speed. Without a GPU, `--device cpu` runs everything at toy sizes in
Triton's interpreter, to see that the scripts work: that gives no speeds and writes no rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benches.gpu import report
from benches.gpu.budget import Budget
from benches.gpu.supervise import NoDevice, Outcome, Reply, Suite, Worker, worker_command

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("check", "attention", "engine", "peers")
SECONDS = 520.0
"""Of a suite, so that starting, building and printing stay inside nine minutes."""
_CHECK_WORKERS = min(12, max(1, (os.cpu_count() or 1) - 2))
"""Checks mostly compile: several processes share the device. Times are taken by one alone."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.gpu.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="cases whose name contains one of these"
    )
    parser.add_argument("--tune", action="store_true", help="attention: also sweep the tiles of decoding")
    parser.add_argument(
        "--vllm-kernels", type=Path, metavar="FOLDER", help="peers: a checkout or an unpacked wheel of vLLM"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the whole suite's time (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: toy sizes, no speeds")
    parser.add_argument("--json", action="store_true", help="rows as JSON lines on stdout instead of a table")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=ROOT / "benches" / "results",
        metavar="FOLDER",
        help="also write gpu_<suite>.jsonl there (benches/results)",
    )
    parser.add_argument("--commit", help="what rows say where there is no git; or AIRI_COMMIT")
    found = parser.parse_args(argv)
    if found.seconds <= 0:
        parser.error(f"--seconds is {found.seconds:g}, accepted is more than 0")
    if found.vllm_kernels is not None and not found.vllm_kernels.is_dir():
        parser.error(f"--vllm-kernels is {found.vllm_kernels}, which is no folder")
    return found


def ensure_airi() -> None:
    """Builds and installs AIRI where it cannot be imported, or is another one than this folder's.

    Raises RuntimeError with the end of pip's output, or naming a file that differs and cannot be replaced.
    """
    found = importlib.util.find_spec("airi")
    why = "airi is not installed"
    if found is not None and found.origin is not None:
        if importlib.util.find_spec("airi._core") is None:
            raise RuntimeError(f"{found.origin} has no core built for this Python; take it off PYTHONPATH")
        installed = Path(found.origin).parent
        differs = first_difference(ROOT, installed)
        if differs is None:
            return
        if not {"site-packages", "dist-packages"} & {*installed.parts}:
            raise RuntimeError(f"{installed / differs} is not this folder's; take it off PYTHONPATH")
        why = f"the airi that is installed has another {differs}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "."]
    print(f"{why}: building it", file=sys.stderr, flush=True)
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def first_difference(root: Path, installed: Path) -> Path | None:
    """The first Python file of the project that an installed package lacks or has otherwise."""
    for folder, target in ((root / "python" / "airi", installed), (root / "kernels", installed / "kernels")):
        for path in sorted(folder.rglob("*.py")):
            below = path.relative_to(folder)
            if folder.name == "airi" and below.parts[0] == "kernels":
                continue  # a link to the kernels where the core is built in place
            twin = target / below
            if not twin.is_file() or twin.read_bytes() != path.read_bytes():
                return twin.relative_to(installed)
    return None


class Progress:
    """A line on stderr for every case as it ends, and its rows to the file."""

    def __init__(self, arguments: argparse.Namespace, budget: Budget, outcome: Outcome) -> None:
        self._arguments, self._budget, self._outcome = arguments, budget, outcome
        # A run on a CPU leaves nothing that could be taken for a measurement.
        folder = None if arguments.device == "cpu" else arguments.write
        self.file = report.RowFile(folder, arguments.suite)
        self._commit = report.commit_of(ROOT, arguments.commit)
        self.rows: list[report.Row] = []

    @property
    def source(self) -> report.Row:
        command = ["python", "-m", "benches.gpu.run", *sys.argv[1:]]
        return report.provenance(self._outcome.hardware, self._commit, command)

    def __call__(self, reply: Reply, done: int, total: int) -> None:
        name = reply.get("case") or reply.get("skipped")
        on_device = self._arguments.device != "cpu"
        print(
            f"[{done}/{total}] {self._budget.spent:4.0f} s  {name}: {_short(reply, timed=on_device)}",
            file=sys.stderr,
            flush=True,
        )
        ceilings = report.ceilings_of([*self.rows, *reply.get("rows", [])]) if on_device else None
        for row in reply.get("rows", []):
            row = report.finished({"suite": self._arguments.suite, "case": reply["case"], **row}, ceilings)
            if not on_device:
                row = without_speeds(row)
            self.rows.append(row)
            self.file.add(row | self.source)
            if self._arguments.json:
                print(json.dumps(row | self.source), flush=True)


def without_speeds(row: report.Row) -> report.Row:
    """The row without any figure that a GPU would have to give."""
    return {key: value for key, value in row.items() if key not in report.FIGURES}


def _short(reply: Reply, *, timed: bool) -> str:
    if "failed" in reply:
        return f"FAILED: {reply['failed']}"
    if "absent" in reply:
        return f"absent: {reply['absent']}"
    if "skipped" in reply:
        return "left out, no time"
    p50 = [row["p50"] for row in reply["rows"] if "p50" in row and timed]
    return (
        f"{p50[0]:,.1f} us" if len(p50) == 1 else f"ok, {len(reply['rows'])} rows" if reply["rows"] else "ok"
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    budget, outcome = Budget(arguments.seconds), Outcome()
    progress = Progress(arguments, budget, outcome)
    more = ["--tune"] * arguments.tune
    if arguments.vllm_kernels is not None:
        more += ["--vllm-kernels", str(arguments.vllm_kernels.resolve())]

    def start() -> Worker:
        command = worker_command(arguments.suite, arguments.device, more)
        return Worker(command, env=environment, cwd=str(ROOT))

    parallel = _CHECK_WORKERS if arguments.suite == "check" and arguments.device != "cpu" else 1
    environment = worker_environment(arguments.device, parallel)
    suite = Suite(start, budget, workers=parallel, only=arguments.only, on_reply=progress)
    try:
        ensure_airi()
        suite.run(outcome)
    except NoDevice as error:
        print(f"{error}; --device cpu runs the suite at toy sizes, without speeds", file=sys.stderr)
        return 2
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what follows is what there was until then", file=sys.stderr)
    finally:
        progress.file.close()
    return conclude(arguments, outcome, progress)


def conclude(arguments: argparse.Namespace, outcome: Outcome, progress: Progress) -> int:
    """Prints the table and what is not in it; 1 where a result was wrong."""
    to = sys.stderr if arguments.json else sys.stdout
    if arguments.device == "cpu":
        print("no speeds: not a GPU", file=to)
    elif arguments.suite != "check":
        report.show_table(progress.rows, f"{arguments.suite}, times in us", to)
    for what in dict.fromkeys(row["verdict"] for row in progress.rows if "verdict" in row):
        print(what, file=to)
    print("  ".join(f"{key}: {value}" for key, value in progress.source.items()), file=to)
    for name, why in outcome.absent:
        print(f"absent: {name}: {why}", file=to)
    if outcome.skipped:
        print(f"left out, as the time was over: {', '.join(outcome.skipped)}", file=to)
    passed = sum("rows" in reply for reply in outcome.replies)
    print(f"{passed} of {len(outcome.replies)} cases right, {len(outcome.failures)} failures", file=to)
    for name, why in outcome.failures:
        print(f"FAILED {name}: {why}", file=to)
    return 1 if outcome.failures else 0


def worker_environment(device: str, workers: int = 1) -> dict[str, str]:
    """Where there is no GPU, kernels run in the interpreter; Triton reads that when it is imported."""
    found = dict(os.environ)
    if device == "cpu":
        found |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    else:
        found.pop("TRITON_INTERPRET", None)
        # A second trace in a process that has graphs crashes where the tracer was torn down after the first.
        found |= {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
    if workers > 1:
        found["OMP_NUM_THREADS"] = "1"
    return found


def _interrupt(_signal: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


if __name__ == "__main__":
    begun = time.monotonic()
    code = main()
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    sys.exit(code)
