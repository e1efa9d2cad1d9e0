"""`airi schema`: the JSON Schema of configs."""

from __future__ import annotations

import json

import typer

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of configs, for editors: `airi schema > airi.schema.json`."""
    from airi.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
