"""The JSON Schema that editors get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from airi.config.document import parse_document
from airi.config.json_schema import json_schema

from .conftest import MINIMAL, with_demo

EXAMPLE = Path(__file__).parents[2] / "examples" / "airi.yaml"


def is_valid(text: str) -> bool:
    return bool(jsonschema_rs.is_valid(json_schema(), parse_document(text, "f").root.plain()))


def test_the_shipped_example_is_valid_with_its_variables_in_place() -> None:
    text = EXAMPLE.read_text()
    assert "${" in text
    assert is_valid(text)
    assert is_valid(MINIMAL)


@pytest.mark.parametrize(
    "text",
    [
        "server: {prot: 1}",
        "server: {port: 70000}",
        "server: {port: '80'}",
        "tenants: [{weight: 1}]",
        "engine: {device: tpu}",
        "engine: {dtype: int3}",
        "tenants: [{name: a, limits: {budget_duration: 1mo}}]",
        "server: {body_limit: lots}",
        "content: {input: [{name: a, detectors: [phone]}]}",
    ],
)
def test_what_the_loader_refuses_is_not_valid(text: str) -> None:
    assert not is_valid(with_demo(text))


def test_every_key_has_a_description_and_what_is_optional_a_default() -> None:
    schema = json_schema()
    parts: list[tuple[str, dict[str, Any]]] = [("airi.yaml", schema), *schema["$defs"].items()]
    for name, part in parts:
        for key, value in part.get("properties", {}).items():
            same = schema["$defs"].get(str(value.get("$ref")).rpartition("/")[2], {})
            assert value.get("description") or same.get("description"), f"{name}.{key}"
            empty = value.get("type") == "object"
            assert key in part.get("required", ()) or "default" in value or empty, f"{name}.{key}"
