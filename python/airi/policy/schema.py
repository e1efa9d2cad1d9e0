"""What policies can speak of: the kinds of callers and resources, the actions, and what is known of a call."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

__all__ = ["ACTIONS", "cedar_schema", "parsed_policies", "parsed_schema"]

MODEL_ACTIONS = (
    "chat",
    "completion",
    "embed",
    "rerank",
    "shadow",
    "preview",
    "judge",
    "classify",
    "tokenize",
)
SERVER_ACTIONS = ("list_models", "admin", "metrics")
ACTIONS = (*MODEL_ACTIONS, *SERVER_ACTIONS, "retrieve", "ingest", "workflow", "promote")


def cedar_schema() -> dict[str, Any]:
    """What policies can speak of, as Cedar's JSON schema."""

    def record(**attributes: Any) -> dict[str, Any]:
        return {"type": "Record", "attributes": attributes}

    text, number, truth = {"type": "String"}, {"type": "Long"}, {"type": "Boolean"}
    call = record(
        max_tokens=number,
        n=number,
        stream=truth,
        tools=truth,
        priority=number,
        priority_class=text,
        release={"type": "String", "required": False},
        release_asked=truth,
        region={"type": "String", "required": False},
        route={"type": "String", "required": False},
    )
    resources = dict.fromkeys(MODEL_ACTIONS, (["Model"], call))
    resources |= dict.fromkeys(SERVER_ACTIONS, (["Server"], record()))
    resources |= {"retrieve": (["Collection"], call), "ingest": (["Collection"], record())}
    resources["workflow"] = (["Workflow"], call)
    resources["promote"] = (["Model", "Workflow"], record())
    actions = {
        action: {"appliesTo": {"principalTypes": ["Tenant"], "resourceTypes": kinds, "context": context}}
        for action, (kinds, context) in resources.items()
    }
    kinds = {
        "Group": {},
        "Tenant": {"memberOfTypes": ["Group"], "shape": record(name=text, priority=number)},
        "Model": {"shape": record(name=text, task=text)},
        "Collection": {"shape": record(name=text, data_class=text)},
        "Workflow": {"shape": record(name=text)},
        "Server": {},
    }
    return {"": {"entityTypes": kinds, "actions": actions}}


@cache
def parsed_schema() -> Any:
    """The schema as Cedar's library keeps it."""
    from cedarpy import Schema

    return Schema.from_json_str(json.dumps(cedar_schema()))


def parsed_policies(text: str) -> dict[str, dict[str, Any]]:
    """Policies in Cedar's JSON, by the ids that Cedar gives them. Raises ValueError for a text that is not Cedar."""
    from cedarpy import policies_to_json_str

    found: dict[str, dict[str, Any]] = json.loads(policies_to_json_str(text))["staticPolicies"]
    return found
