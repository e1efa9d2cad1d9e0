"""The JSON Schema of a config, for editors."""

from __future__ import annotations

from typing import Any

from airi.config.schema import Config

__all__ = ["json_schema"]

_VARIABLE = {"type": "string", "pattern": r"\$\{", "description": "A variable: ${NAME} or ${NAME:-default}."}
_SCALARS = ("integer", "number", "boolean")


def json_schema() -> dict[str, Any]:
    """Every key with its description and default. Where a number or a truth value stands, a variable may, too."""
    schema = Config.model_json_schema()
    _allow_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "airi.yaml"}


def _allow_variables(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _allow_variables(item)
    elif isinstance(schema, dict):
        for value in schema.values():
            _allow_variables(value)
        if schema.get("type") in _SCALARS or "enum" in schema or "const" in schema:
            inner = {
                name: schema.pop(name)
                for name in list(schema)
                if name not in ("title", "description", "default")
            }
            schema["anyOf"] = [inner, _VARIABLE]
