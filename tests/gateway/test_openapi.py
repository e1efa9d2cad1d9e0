"""The OpenAPI document: it is what is served, and what is served is in it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from airi.gateway.access import OPEN_PATHS, Access
from airi.gateway.app import create_app
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry
from airi.gateway.openapi import OPERATIONS, openapi_document
from airi.gateway.options import AppOptions
from airi.sampling_params import MAX_PRIORITY

from .conftest import Gateway, StartGateway


def references(value: Any) -> set[str]:
    """All `$ref`s in a document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(v) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(references(v) for v in value))
    return set()


def test_every_route_is_documented_and_every_operation_is_routed() -> None:
    app = create_app(
        ModelRegistry([]),
        Metrics("1"),
        AppOptions(),
        access=Access(),
        government=Government(decider_of(None, ())),
    )
    routed = {
        (route.path.replace(":path", ""), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert routed == {(operation.path, operation.method) for operation in OPERATIONS}
    assert {operation.path for operation in OPERATIONS} >= OPEN_PATHS


def test_the_document_holds_together(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    assert "securitySchemes" not in document["components"]
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "404", "405", "413", "429", "500", "503", "504"} == set(chat["responses"])
    request = document["components"]["schemas"]["ChatCompletionRequest"]
    assert set(request["required"]) == {"model", "messages"}
    assert request["properties"]["model"]["examples"] == ["tiny", "tiny-alias"]
    message = document["paths"]["/v1/messages"]["post"]["responses"]["400"]["content"]["application/json"]
    assert message["schema"] == {"$ref": "#/components/schemas/MessagesError"}
    for name in ("ResponseRequest", "MessagesRequest", "CountTokensRequest"):
        schema = document["components"]["schemas"][name]
        assert schema["properties"]["model"]["examples"] == ["tiny", "tiny-alias"]
        assert schema["additionalProperties"] is False
    (priority, _) = request["properties"]["priority"]["anyOf"]
    assert (priority["minimum"], priority["maximum"]) == (-MAX_PRIORITY, MAX_PRIORITY)


@pytest.mark.parametrize("more", [set(), {"/metrics"}])
def test_with_keys_every_guarded_operation_says_so(more: set[str]) -> None:
    open_paths = OPEN_PATHS | more
    document = msgspec.json.decode(openapi_document(models=["m"], vocab_size=9, open_paths=open_paths))
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["components"]["securitySchemes"]["x-api-key"]["name"] == "x-api-key"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in open_paths)
            assert ("401" in operation["responses"]) == (path not in open_paths)


@pytest.mark.slow  # about 60 s
def test_schemathesis_finds_nothing(start_gateway: StartGateway) -> None:
    # A schema cannot say that prompt and max_tokens together fit the window, nor that min_tokens <= max_tokens.
    unsayable = ["--exclude-checks", "positive_data_acceptance"]
    gateway = start_gateway(max_model_len=300, stop_after=20)
    schemathesis = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command = [*schemathesis, "run", f"{gateway.url}/openapi.json", "--seed", "1", "--continue-on-failure"]
    command += ["--max-examples", "50", *unsayable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
