"""The process that touches the device: runs cases by name, one after the other, as its parent asks.

Lines of JSON both ways. First it says where it runs and which cases there are; then, for every name on stdin, it
answers with rows, a failure or what is absent. Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any

SUITES = {
    "check": (
        "check_steps",
        "check_logits",
        "check_bits",
        "check_errors",
        "check_attention",
        "check_writes",
        "check_rows",
        "check_experts",
        "check_sampling",
    ),
    "attention": (
        "speed_layout",
        "speed_decode",
        "speed_prefill",
        "speed_rest",
        "speed_sampling",
        "speed_tune",
    ),
    "engine": ("speed_engine",),
    "peers": ("speed_peers",),
}
"""Modules of a suite, each with a function `cases`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--vllm-kernels", type=Path)
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(arguments, replies)


def serve(arguments: argparse.Namespace, replies: IO[str]) -> None:
    """Answers until stdin ends or a failure leaves the device unusable."""
    import torch

    if arguments.device != "cpu" and not torch.cuda.is_available():
        _say(replies, {"no_device": "torch sees no GPU here"})
        return
    from benches.gpu.bench import Bench, Options

    device = torch.device("cpu" if arguments.device == "cpu" else "cuda")
    options = Options(tune=arguments.tune, vllm_kernels=arguments.vllm_kernels)
    bench = Bench(device=device, options=options)
    cases = {}
    for module in SUITES[arguments.suite]:
        for case in cases_of(module, bench):
            cases[case.name] = case
    listed = [[case.name, case.seconds] for case in cases.values()]
    _say(replies, {"hardware": hardware(device), "cases": listed})
    for line in sys.stdin:
        reply = run_case(cases[line.strip()], bench)
        _say(replies, reply)
        if reply.get("fatal"):
            return


def cases_of(module: str, bench: Any) -> list[Any]:
    """The module's cases; where it cannot be imported, one that says why, so that the others still run."""
    from benches.gpu.bench import Case

    try:
        found: list[Any] = importlib.import_module(f"benches.gpu.{module}").cases(bench)
    except ImportError as error:
        failure = error

        def fail(_bench: Any) -> Any:
            raise failure

        return [Case(name=module, run=fail, seconds=0)]
    return found


def run_case(case: Any, bench: Any) -> dict[str, Any]:
    """The reply to one name; nothing that a case raises ends the process."""
    import torch

    from benches.gpu.bench import NotHere, Wrong, device_answers

    try:
        rows = case.run(bench)
        if not bench.toy:
            torch.cuda.synchronize()
    except NotHere as error:
        return {"case": case.name, "absent": str(error)}
    except Wrong as error:
        return {"case": case.name, "failed": str(error)}
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {
            "case": case.name,
            "failed": f"{type(error).__name__}: {lines[0]}"[:300],
            "fatal": not bench.toy and not device_answers(),
        }
    return {"case": case.name, "rows": rows}


def hardware(device: Any) -> dict[str, str]:
    """Device, driver and versions."""
    import torch
    import triton

    import airi

    found = {
        "airi": airi.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cpu":
        return {"gpu": "none", **found}
    properties = torch.cuda.get_device_properties(device)
    found |= {"gpu": f"{properties.name}, {properties.total_memory >> 20} MiB", "driver": _driver()}
    return found


def _driver() -> str:
    import torch

    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return f"CUDA {torch.version.cuda}"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return f"{said[0] if said else 'unknown'}, CUDA {torch.version.cuda}"


def _say(replies: IO[str], what: dict[str, Any]) -> None:
    replies.write(json.dumps(what) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
