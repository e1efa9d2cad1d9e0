"""The model that comes with AIRI, for when none is named."""

from __future__ import annotations

from pathlib import Path

from airi.errors import CheckpointError

__all__ = ["NAME", "path", "resolve"]

NAME = "airi-demo"
"""What requests call the built-in model."""


def path() -> Path:
    """Its checkpoint folder; CheckpointError where this installation has none."""
    folder = Path(__file__).parent / NAME
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"this installation has no built-in model ({folder} is missing); name a model")
    return folder


def resolve(model: str | Path | None) -> str:
    """The path to load for a model as users name it: nothing, or the built-in model's name, means that one.

    A folder of the same name in the working directory comes first.
    """
    if model is None or (str(model) == NAME and not Path(NAME).is_dir()):
        return str(path())
    return str(model)
