"""Vector indexes of others: least breadth that reaches a recall, and the time of one query after the other, one thread.

    python benches/contestants/vectors.py usearch|lancedb DATA.npz RECALL

Prints one line of JSON: recall, breadth and microseconds of a query, of each round.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
ROUNDS = 5
Search = Callable[[Any], Any]


def usearch_index(vectors: Any) -> Callable[[int], Search]:
    """HNSW of usearch in float16, inner product: its int8 has but a few levels for numbers as small as these."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=80)
    index.add(np.arange(len(vectors)), vectors, threads=1)

    def at(breadth: int) -> Search:
        index.expansion_search = breadth
        return lambda query: index.search(query, 10, threads=1).keys

    return at


def lancedb_table(vectors: Any) -> Callable[[int], Search]:
    """HNSW-SQ of LanceDB, in a table on the disk."""
    import lancedb

    folder = tempfile.mkdtemp(prefix="airi-lancedb-")
    rows = [{"id": i, "vector": vector} for i, vector in enumerate(vectors)]
    table = lancedb.connect(folder).create_table("rows", rows)
    table.create_index(metric="dot", index_type="IVF_HNSW_SQ", num_partitions=1, m=32, ef_construction=80)

    def at(breadth: int) -> Search:
        def search(query: Any) -> Any:
            found = table.search(query).distance_type("dot").ef(breadth).limit(10).select(["id"]).to_arrow()
            return found["id"].to_numpy()

        return search

    return at


def main() -> None:
    peer, path, wanted = sys.argv[1], sys.argv[2], float(sys.argv[3])
    data = np.load(path)
    queries, truth = data["queries"], data["truth"]
    at = {"usearch": usearch_index, "lancedb": lancedb_table}[peer](data["vectors"])
    recall, breadth = 0.0, 0
    for breadth in BREADTHS:
        search = at(breadth)
        hits = [len(set(map(int, search(q))) & set(t)) for q, t in zip(queries, truth.tolist(), strict=True)]
        recall = sum(hits) / truth.size
        if recall >= wanted:
            break
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for query in queries:
            search(query)
        rounds.append((time.perf_counter() - began) / len(queries) * 1e6)
    print(json.dumps({"recall": recall, "breadth": breadth, "us": rounds}))


if __name__ == "__main__":
    main()
