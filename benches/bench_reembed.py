"""Is a collection right, and quick, while all its rows are embedded anew and the process that does it is killed?

    python -m benches.bench_reembed [--rows 50000] [--kills 1] [--json]

One process searches at a fixed rate, each query the vector of a row, which must come first with the score of equal
vectors; another fills a second space, is killed with SIGKILL, and goes on in a new process. Then the second space takes
over while searches go on, and is rolled back. First the same searches are timed with nobody filling.

What the numbers do not mean: embedders draw a vector from a text's hash, which takes next to no time, so the file is
written as fast as it can be; a real embedder is slower, and shares the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from airi.retrieval import Collection, EmbeddingSpace, Reembedding, Row
from airi.retrieval.spaces import Vectors
from benches.common import plain_parser, print_rows, verdict

DIMENSION = 384
TARGET_P99 = 3.0


class Hashed:
    """A direction drawn from each text's hash and the name of the space."""

    def __init__(self, name: str) -> None:
        self.space = EmbeddingSpace(model=name, tokenizer="bench", pooling="mean", dimension=DIMENSION)

    def encode(self, texts: Sequence[str]) -> Vectors:
        seeds = [hashlib.sha256(f"{self.space.model} {text}".encode()).digest()[:8] for text in texts]
        drawn = [np.random.default_rng(int.from_bytes(seed)).standard_normal(DIMENSION) for seed in seeds]
        found: Vectors = np.array(drawn, np.float32)
        return found


OLD, NEW = Hashed("old"), Hashed("new")


def text_of(row: int) -> str:
    """The text of a row."""
    return f"text of row {row}"


def fill(folder: str) -> None:
    """Fills the new space, and says how many rows are left."""
    collection = Collection.open(folder, "bench")
    with Reembedding(collection, NEW) as job:
        while not job.wait(0.05):
            print(job.progress().pending, flush=True)
    print(0, flush=True)


class Asker:
    """Searches at a fixed rate."""

    def __init__(self, collection: Collection, rows: int, rate: float) -> None:
        self._collection = collection
        self._rows = rows
        self._pause_s = 1 / rate
        self._draw = np.random.default_rng(0)
        self.wrong = 0
        self.asked = 0

    def until(self, is_over: Iterator[bool], embedder: Hashed) -> float:
        """Asks until it is told that all is over; the p99 of what searches took, milliseconds."""
        taken = []
        due = time.perf_counter()
        for over in is_over:
            if over:
                break
            row = int(self._draw.integers(self._rows))
            query = embedder.encode([text_of(row)])[0]
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + self._pause_s, time.perf_counter())
            began = time.perf_counter()
            hits = self._collection.search(query, space=embedder.space)
            taken.append((time.perf_counter() - began) * 1e3)
            self.asked += 1
            self.wrong += hits[0].id != str(row) or abs(hits[0].score - 1) > 1e-4
        return float(np.quantile(taken, 0.99))


def seconds(duration: float) -> Iterator[bool]:
    """False until so many seconds have passed."""
    end = time.monotonic() + duration
    while True:
        yield time.monotonic() > end


class Filler:
    """The process that fills, killed so many times on its way."""

    def __init__(self, folder: str, rows: int, kills: int) -> None:
        self._command = [sys.executable, "-m", "benches.bench_reembed", "--fill", folder]
        self._marks = [rows * (kills - i) // (kills + 1) for i in range(kills)]
        self.killed_at: list[int] = []

    def is_done(self, collection: Collection) -> Iterator[bool]:
        """Whether all rows have vectors; kills and starts it anew on the way."""
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while True:
            spaces = collection.stats()["spaces"]
            left = spaces[NEW.space.key]["pending"] if NEW.space.key in spaces else None
            if self._marks and left is not None and left <= self._marks[0]:
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.killed_at.append(left)
                del self._marks[0]
                process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
            if left == 0:
                process.wait()
            elif process.poll() is not None or time.monotonic() - began > 1800:
                raise SystemExit(f"the space was not filled: {left} rows are left")
            yield left == 0


def filled(folder: str, rows: int) -> Collection:
    """A collection in its old space."""
    collection = Collection.open(folder, "bench")
    collection.attach(OLD)
    for first in range(0, rows, 2000):
        collection.upsert([Row(id=str(i), text=text_of(i)) for i in range(first, min(first + 2000, rows))])
    collection.wait_for_graphs(1200)
    return collection


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All of it, in order."""
    with (
        tempfile.TemporaryDirectory(prefix="airi-bench-") as folder,
        filled(folder, options.rows) as collection,
    ):
        asker = Asker(collection, options.rows, options.rate)
        alone = asker.until(seconds(options.seconds), OLD)
        filler = Filler(folder, options.rows, options.kills)
        began = time.monotonic()
        during = asker.until(filler.is_done(collection), OLD)
        took = time.monotonic() - began
        collection.cut_over(NEW.space)
        asker.until(seconds(2), NEW)
        asker.until(seconds(2), OLD)  # who embedded before
        collection.roll_back()
        asker.until(seconds(2), OLD)
    ends = {
        "wrong": asker.wrong,
        "asked": asker.asked,
        "killed_at": filler.killed_at,
        "fill_s": round(took, 1),
    }
    return [
        {"question": "wrong or mixed answers", **ends, "target": "0", "reached": asker.wrong == 0},
        verdict(
            "p99 of searches while a space is filled",
            during,
            alone,
            TARGET_P99,
            unit="ms",
            smaller_is_better=True,
        ),
    ]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=50.0, help="searches per second")
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of searches with nobody filling")
    parser.add_argument("--fill", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill is not None:
        fill(options.fill)
        return
    print_rows(measured(options), as_json=options.json)


if __name__ == "__main__":
    main()
