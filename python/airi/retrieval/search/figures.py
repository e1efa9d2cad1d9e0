"""What is known of a collection's searches, as JSON has it."""

from __future__ import annotations

from typing import Any

from airi.retrieval.memory import SpaceView, View
from airi.retrieval.search.planner import break_even

__all__ = ["figures_of"]


def figures_of(view: View) -> dict[str, Any]:
    """Rows, bytes, and of each space its rows, graph and measured recall."""
    return {
        "rows": view.num_live,
        "snapshot": view.seq,
        "active": view.active,
        "previous": view.previous,
        "memory_bytes": view.memory.memory_bytes(),
        "spaces": {key: _space_figures(view, space) for key, space in view.spaces.items()},
    }


def _space_figures(view: View, space: SpaceView) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "dimension": space.space.dimension,
        "rows": view.num_live - space.pending,
        "pending": space.pending,
        "matrix": str(space.matrix.data.dtype),
        "graph": None,
    }
    graph = view.memory.graphs.get(space.number)
    if graph is not None:
        figures["graph"] = {
            "precision": graph.precision,
            "rows": len(graph.slots),
            "tail": view.count - graph.covered,
            "is_used": graph.costs is not None,
            "ef": graph.ef,
            "recall_at_10": round(graph.recall, 4),
            "break_even_rows": break_even(graph),
        }
    return figures
