"""Hyperscan over streams cut into pieces, one call a piece: microseconds of CPU per piece.

It says where matches end, and not which match is still open: nobody who uses it knows how much text to hold back.
Takes a file of JSON: patterns, texts by name, piece, turns.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import hyperscan


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    patterns = [pattern.encode() for pattern in given["patterns"]]
    database = hyperscan.Database(mode=hyperscan.HS_MODE_STREAM)
    options = {"ids": list(range(len(patterns))), "elements": len(patterns), "flags": hyperscan.HS_FLAG_UTF8}
    database.compile(expressions=patterns, **options)
    matches = 0

    def on_match(*_: object) -> None:
        nonlocal matches
        matches += 1

    found: dict[str, list[float]] = {}
    for _ in range(given["turns"]):
        for name, text in given["texts"].items():
            data = text.encode()
            pieces = [data[i : i + given["piece"]] for i in range(0, len(data), given["piece"])]
            with database.stream(match_event_handler=on_match) as stream:
                scan = stream.scan
                start = time.thread_time_ns()
                for piece in pieces:
                    scan(piece)
                found.setdefault(name, []).append((time.thread_time_ns() - start) / 1e3 / len(pieces))
    figures = {name: median(values) for name, values in found.items()}
    print(json.dumps({"us_per_piece": figures, "matches": matches, "version": str(database.info())}))


if __name__ == "__main__":
    main()
