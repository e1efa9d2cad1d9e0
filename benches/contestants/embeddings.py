"""Embeds the same texts by AIRI or by sentence-transformers, in rounds: all texts in one call, then one short query.

    python benches/contestants/embeddings.py airi|sentence-transformers FOLDER TEXTS.json THREADS ROUNDS

Prints one line of JSON: of each round the seconds and CPU seconds for all texts, and the median ms of a query.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

QUERIES = 50
Embed = Callable[[Sequence[str]], Any]


def airi(folder: str, threads: int) -> tuple[Embed, str]:
    """`airi.LLM.embed`."""
    import airi

    return airi.LLM(folder, threads=threads).embed, airi.__version__


def sentence_transformers(folder: str, threads: int) -> tuple[Embed, str]:
    """Its own batches of 32, sorted by length."""
    import sentence_transformers
    import torch

    torch.set_num_threads(threads)
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    return embed, sentence_transformers.__version__


def main() -> None:
    """As the module says."""
    name, folder, path, threads, rounds = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = threads
    given = json.loads(Path(path).read_text())
    texts, query = given["texts"], given["query"]
    make = airi if name == "airi" else sentence_transformers
    embed, version = make(folder, int(threads))
    first = [[float(x) for x in vector] for vector in embed([*texts[:8], query])]
    found = []
    for _ in range(int(rounds)):
        wall, cpu = time.perf_counter(), time.process_time()
        embed(texts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        taken = []
        for _ in range(QUERIES):
            began = time.perf_counter()
            embed([query])
            taken.append(1000 * (time.perf_counter() - began))
        found.append({"seconds": wall, "cpu_seconds": cpu, "query_ms": statistics.median(taken)})
    print(json.dumps({"name": name, "version": version, "rounds": found, "vectors": first}))


if __name__ == "__main__":
    main()
