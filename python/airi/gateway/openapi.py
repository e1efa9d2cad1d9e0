"""The OpenAPI 3.1 document, made from the same msgspec types that decode requests and encode responses."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from airi import __version__
from airi.gateway.admin.operations import ADMIN_OPERATIONS
from airi.gateway.anthropic import schemas as messages
from airi.gateway.kserve.routes import KSERVE_OPERATIONS
from airi.gateway.openai import schemas_chat as chat
from airi.gateway.openai import schemas_common as common
from airi.gateway.openai import schemas_completions as completions
from airi.gateway.openai import schemas_pooling as pooling
from airi.gateway.openai import schemas_responses as responses
from airi.gateway.operation import Operation
from airi.gateway.retrieval.operations import RETRIEVAL_OPERATIONS

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"


_GENERATE_ERRORS = (400, 404, 413, 429, 500, 503, 504)
_TOKEN_ERRORS = (400, 404, 413)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        path="/v1/chat/completions",
        method="post",
        name="createChatCompletion",
        summary="Continue a chat; `stream: true` answers with server-sent events.",
        request=chat.ChatCompletionRequest,
        response=chat.ChatCompletion,
        events=chat.ChatCompletionChunk,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/completions",
        method="post",
        name="createCompletion",
        summary="Continue texts or token ids; `stream: true` answers with server-sent events.",
        request=completions.CompletionRequest,
        response=completions.Completion,
        events=completions.CompletionChunk,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/embeddings",
        method="post",
        name="createEmbedding",
        summary="Vectors of texts.",
        request=pooling.EmbeddingRequest,
        response=pooling.EmbeddingResponse,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/rerank",
        method="post",
        name="createRerank",
        summary="Documents sorted by what they say to a query.",
        request=pooling.RerankRequest,
        response=pooling.RerankResponse,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/score",
        method="post",
        name="createScore",
        summary="How well pairs of texts go together.",
        request=pooling.ScoreRequest,
        response=pooling.ScoreResponse,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/classify",
        method="post",
        name="classify",
        summary="Which label fits each text, and how likely each is.",
        request=pooling.ClassifyRequest,
        response=pooling.ClassifyResponse,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/responses",
        method="post",
        name="createResponse",
        summary="Continue a chat in the form of the Responses API; nothing of it is stored.",
        request=responses.ResponseRequest,
        response=responses.Response,
        events=responses.ResponseEvent,
        has_named_events=True,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/messages",
        method="post",
        name="createMessage",
        summary="Continue a chat in the form of Anthropic's Messages API.",
        request=messages.MessagesRequest,
        response=messages.Message,
        events=messages.MessageEvent,
        has_named_events=True,
        failure=messages.MessagesError,
        errors=_GENERATE_ERRORS,
    ),
    Operation(
        path="/v1/messages/count_tokens",
        method="post",
        name="countMessageTokens",
        summary="How many tokens such a chat has in the model's template.",
        request=messages.CountTokensRequest,
        response=messages.CountTokensResponse,
        failure=messages.MessagesError,
        errors=_TOKEN_ERRORS,
    ),
    Operation(
        path="/v1/models",
        method="get",
        name="listModels",
        summary="All served names.",
        response=common.ModelList,
    ),
    Operation(
        path="/v1/models/{model}",
        method="get",
        name="retrieveModel",
        summary="One served name.",
        response=common.Model,
        errors=(404,),
    ),
    *(
        operation
        for prefix, suffix in (("", ""), ("/v1", "V1"))
        for operation in (
            Operation(
                path=f"{prefix}/tokenize",
                method="post",
                name=f"tokenize{suffix}",
                summary="Token ids of a text or of a chat in the model's template.",
                request=common.TokenizeRequest,
                response=common.TokenizeResponse,
                errors=_TOKEN_ERRORS,
            ),
            Operation(
                path=f"{prefix}/detokenize",
                method="post",
                name=f"detokenize{suffix}",
                summary="Text of token ids.",
                request=common.DetokenizeRequest,
                response=common.DetokenizeResponse,
                errors=_TOKEN_ERRORS,
            ),
        )
    ),
    Operation(
        path="/health",
        method="get",
        name="health",
        summary="Whether this process answers.",
        response=common.HealthResponse,
        errors=(503,),
    ),
    Operation(
        path="/ready",
        method="get",
        name="ready",
        summary="Whether every engine serves.",
        response=common.HealthResponse,
        errors=(503,),
    ),
    Operation(
        path="/version",
        method="get",
        name="version",
        summary="The server's version.",
        response=common.VersionResponse,
    ),
    Operation(path="/metrics", method="get", name="metrics", summary="Prometheus metrics."),
    Operation(
        path="/openapi.json", method="get", name="openapi", summary="This document.", response=dict[str, Any]
    ),
    *RETRIEVAL_OPERATIONS,
    *KSERVE_OPERATIONS,
    *ADMIN_OPERATIONS,
)

_WITH_MODELS = (
    "ChatCompletionRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "RerankRequest",
    "ScoreRequest",
    "ClassifyRequest",
    "ResponseRequest",
    "MessagesRequest",
    "CountTokensRequest",
)
_RESPONSE_PARTS = (responses.InputText, responses.EarlierText, responses.EarlierRefusal)
_MESSAGE_PARTS = (messages.TextBlockParam, messages.ToolUseBlockParam, messages.ToolResultBlockParam)
_COUNTED = {"system": (messages.TextBlockParam,), "tools": (messages.ToolParam,)}
_LISTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ResponseRequest": {
        "input": (responses.InputMessage, responses.EarlierCall, responses.CallOutput),
        "tools": (responses.FunctionTool,),
    },
    "InputMessage": {"content": _RESPONSE_PARTS},
    "CallOutput": {"output": (responses.InputText,)},
    "MessagesRequest": _COUNTED,
    "CountTokensRequest": _COUNTED,
    "MessageParam": {"content": _MESSAGE_PARTS},
    "ToolResultBlockParam": {"content": (messages.TextBlockParam,)},
}
"""What is in lists that are read by the type of each item: by schema and field."""

_REASONS = {
    400: "The body is not JSON, a field is wrong, or the prompt does not fit",
    401: "No key, or an unknown one",
    403: "Policies deny the call; `message` names them",
    404: "No such model or key",
    405: "The path has no such method",
    409: "The server has no config or state, or refuses the config, with a line for each mistake",
    413: "The body is too large",
    415: "The body is not said to be JSON",
    429: "The queue is full; `retry-after` says when to try again",
    500: "A step failed for this request",
    503: "The engine does not serve at the moment",
    504: "The request's deadline passed",
}


def openapi_document(
    *, models: list[str], vocab_size: int, open_paths: frozenset[str] | None, metrics_page: bool = True
) -> bytes:
    """The document as JSON; `models` become examples. All but `open_paths` need a key; None: nothing does.

    `vocab_size` is that of the largest vocabulary served: ids beyond it are wrong for every model.
    """
    types: list[Any] = [chat.ChatMessage, chat.ToolDefinition, chat.TextFormat]
    types += [kind for lists in _LISTS.values() for kinds in lists.values() for kind in kinds]
    for operation in OPERATIONS:
        kinds = (operation.request, operation.response, operation.events, operation.failure)
        types += [kind for kind in kinds if kind is not None]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    _refine(components, models, vocab_size)
    paths: Json = {}
    for operation in OPERATIONS:
        if operation.path == "/metrics" and not metrics_page:
            continue
        guarded = open_paths is not None and operation.path not in open_paths
        described = _operation(operation, models, guarded=guarded)
        paths.setdefault(operation.path, {})[operation.method] = described
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "AIRI", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components},
    }
    if open_paths is not None:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return msgspec.json.encode(document)


def _refine(components: dict[str, Json], models: list[str], vocab_size: int) -> None:
    """What the types cannot say: messages and tools stay plain objects, as their order of keys is the template's."""
    for name in _WITH_MODELS:
        components[name]["properties"]["model"]["examples"] = models
    for name, lists in _LISTS.items():
        for field, kinds in lists.items():
            items = {"anyOf": [{"$ref": _REF.format(name=kind.__name__)} for kind in kinds]}
            _set_items(components[name]["properties"][field], items)
    message, tool = (_REF.format(name=name) for name in ("ChatMessage", "ToolDefinition"))
    messages = {"type": "array", "minItems": 1, "items": {"$ref": message}}
    tools = {"anyOf": [{"type": "array", "items": {"$ref": tool}}, {"type": "null"}]}
    components["ChatCompletionRequest"]["properties"].update(messages=messages, tools=tools)
    tokenize = components["TokenizeRequest"]
    tokenize["properties"].update(messages={"anyOf": [messages, {"type": "null"}]}, tools=tools)
    text, chat = {"prompt": {"type": "string"}}, {"messages": {"type": "array"}}
    tokenize["oneOf"] = [
        {"required": ["prompt"], "properties": text},
        {"required": ["messages"], "properties": chat},
    ]
    components["ContentPart"] = {
        "title": "ContentPart",
        "description": "A piece of a message's content; models here read text.",
        "oneOf": [_part("text"), _part("refusal")],
    }
    token = {"type": "integer", "minimum": 0, "maximum": max(vocab_size, 1) - 1}
    ids = {"type": "array", "minItems": 1, "items": token}
    components["DetokenizeRequest"]["properties"]["tokens"] = {"type": "array", "items": token}
    texts = [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        ids,
        {"type": "array", "minItems": 1, "items": ids},
    ]
    read = (("CompletionRequest", "prompt"), ("EmbeddingRequest", "input"), ("ClassifyRequest", "input"))
    for name, field in read:
        components[name]["properties"][field]["anyOf"] = texts


def _set_items(schema: Json, items: Json) -> None:
    """Says what is in the one list that a field may be."""
    for each in (schema, *schema.get("anyOf", ())):
        if each.get("type") == "array":
            each["items"] = items


def _part(kind: str) -> Json:
    properties = {"type": {"const": kind}, kind: {"type": "string"}}
    return {"type": "object", "required": ["type", kind], "properties": properties}


def _operation(operation: Operation, models: list[str], *, guarded: bool) -> Json:
    errors = sorted({*operation.errors, 405, *((401,) if guarded else ())})
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": _success(operation),
            **{str(status): _failure(status, operation.failure) for status in errors},
        },
    }
    if guarded:
        described["security"] = [{"key": []}, {"x-api-key": []}]
    if operation.request is not None:
        body = {"application/json": {"schema": _schema(operation.request)}}
        described["requestBody"] = {"required": operation.needs_body, "content": body}
    parameters = _parameters(operation, models)
    if parameters:
        described["parameters"] = parameters
    return described


def _parameters(operation: Operation, models: list[str]) -> list[Json]:
    text = {"type": "string", "minLength": 1}
    found: list[Json] = []
    for name in re.findall(r"{(\w+)}", operation.path):
        found.append({"name": name, "in": "path", "required": True, "schema": text})
        if name == "model":
            found[-1]["examples"] = {served: {"value": served} for served in models}
    return found + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query]


def _success(operation: Operation) -> Json:
    content: Json = {}
    if operation.response is not None:
        content["application/json"] = {"schema": _schema(operation.response)}
    elif operation.events is None:
        content["text/plain"] = {"schema": {"type": "string"}}
    if operation.events is not None:
        # OpenAPI 3.1 cannot say what an event's data holds once it is parsed; the text names the schema.
        end = "." if operation.has_named_events else "; in the last event [DONE]."
        data = {"type": "string", "description": f"A {operation.events.__name__} as JSON{end}"}
        content["text/event-stream"] = {
            "schema": {"type": "object", "required": ["data"], "properties": {"data": data}}
        }
    return {
        "description": "Success",
        "content": content,
        "headers": {"x-request-id": {"schema": {"type": "string"}}},
    }


def _failure(status: int, kind: type[Any]) -> Json:
    headers: Json = {"x-request-id": {"schema": {"type": "string"}}}
    if status in (429, 503):
        headers["retry-after"] = {"schema": {"type": "integer"}}
    return {
        "description": _REASONS[status],
        "headers": headers,
        "content": {"application/json": {"schema": _schema(kind)}},
    }


def _schema(kind: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(schema)
