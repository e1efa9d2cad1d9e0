"""Run clang-tidy over source files, as many at once as there are cores; silent where it finds nothing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def tidy(build: Path, checks: str, source: str) -> tuple[int, str]:
    """Exit status and findings of one file; `checks` come after those of .clang-tidy."""
    # The flags of GCC's command line that clang does not know are no findings.
    command = ["clang-tidy", "--quiet", "-p", str(build), "--extra-arg=-Wno-unknown-warning-option"]
    command += [f"--checks={checks}", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True, help="build folder with compile_commands.json")
    parser.add_argument(
        "--checks", default="", help="added to those of .clang-tidy, as clang-tidy reads them"
    )
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    database = json.loads((options.build / "compile_commands.json").read_text())
    # A file that no target of this machine compiles (another architecture's kernel) has no flags to check it with.
    built = {Path(entry["file"]).resolve() for entry in database}
    files = [name for name in options.files if Path(name).resolve() in built]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda name: tidy(options.build, options.checks, name), files))
    for status, text in results:
        if status:
            sys.stdout.write(text)
    return int(any(status for status, _ in results))


if __name__ == "__main__":
    raise SystemExit(main())
