"""Print files over 400 lines and Python functions over 50: a reminder to split, not a gate."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
SOURCES = (".py", ".h", ".cc")


def long_functions(path: Path) -> list[str]:
    """`path:line name (n lines)` of each function over the budget."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno} {node.name} ({length} lines)")
    return found


def main() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    for path in map(Path, tracked):
        if path.suffix not in SOURCES or not path.exists():
            continue
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            print(f"{path} ({lines} lines)")
        if path.suffix == ".py":
            for offender in long_functions(path):
                print(offender)


if __name__ == "__main__":
    main()
