"""Runs every check_* of a program of this folder in the own environment: run.py PROGRAM URL KEY TIGHT_URL GRPC.

Prints one JSON line per check: its name and the traceback of its failure, or null. Standard library only.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
import traceback


def main(program: str, *server: str) -> None:
    """Each check takes the first of URL, KEY, TIGHT_URL, GRPC that it has parameters for."""
    module = importlib.import_module(program)
    for name, check in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("check_"):
            continue
        error = None
        try:
            result = check(*server[: len(inspect.signature(check).parameters)])
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"check": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
