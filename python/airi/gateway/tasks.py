"""What models do, and where they are called for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airi.gateway.errors import bad_field

if TYPE_CHECKING:
    from airi.gateway.models import ServedModel
    from airi.outputs import Task

__all__ = ["GENERATES", "check_scores", "check_task"]

GENERATES: Final[frozenset[Task]] = frozenset({"generate"})


def check_task(model: ServedModel, tasks: frozenset[Task]) -> None:
    """Raises a 400 that names the endpoint to use, for a model that does something else than any of these."""
    if model.info.task not in tasks:
        raise bad_field("model", f"{model.name} {_described(model)}", code="wrong_task")


def check_scores(model: ServedModel) -> None:
    """Raises a 400 for a classifier of several labels: it tells of no one number that is a score."""
    if len(model.info.labels) > 1:
        raise bad_field("model", f"{model.name} {_described(model)}", code="wrong_task")


def _described(model: ServedModel) -> str:
    match model.info.task:
        case "embed":
            return "gives vectors of texts; use /v1/embeddings, or /v1/score"
        case "classify" if len(model.info.labels) == 1:
            return "scores texts; use /v1/rerank, /v1/score or /classify"
        case "classify":
            return f"tells which of {len(model.info.labels)} labels fit texts; use /classify"
        case _:
            return "generates text; use /v1/chat/completions or /v1/completions"
