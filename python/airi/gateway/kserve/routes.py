"""All routes of the protocol, and how the OpenAPI document describes them."""

from __future__ import annotations

from starlette.routing import Route

from airi.gateway.gate import Gate, Guarded
from airi.gateway.kserve import pages, schemas
from airi.gateway.kserve.infer import Generate, Infer
from airi.gateway.middleware import ASGIApp
from airi.gateway.models import ModelRegistry
from airi.gateway.operation import Operation
from airi.policy.decisions import Action

__all__ = ["KSERVE_OPERATIONS", "kserve_routes"]

_MODEL = "/v2/models/{model}"
_ERRORS = (400, 404, 413, 429, 500, 503, 504)

KSERVE_OPERATIONS = (
    Operation(
        path=f"{_MODEL}/infer",
        method="post",
        name="inferModel",
        summary="Continue texts, as tensors of the Open Inference Protocol.",
        request=schemas.InferRequest,
        response=schemas.InferResponse,
        failure=schemas.KServeError,
        errors=_ERRORS,
    ),
    Operation(
        path=f"{_MODEL}/generate",
        method="post",
        name="generateText",
        summary="Continue a text.",
        request=schemas.GenerateRequest,
        response=schemas.GenerateResponse,
        failure=schemas.KServeError,
        errors=_ERRORS,
    ),
    Operation(
        path=f"{_MODEL}/generate_stream",
        method="post",
        name="generateTextStream",
        summary="Continue a text, told piece by piece in server-sent events.",
        request=schemas.GenerateRequest,
        events=schemas.GenerateResponse,
        has_named_events=True,
        failure=schemas.KServeError,
        errors=_ERRORS,
    ),
    Operation(
        path="/v2",
        method="get",
        name="serverMetadata",
        summary="The server, by the Open Inference Protocol.",
        response=schemas.ServerMetadata,
        failure=schemas.KServeError,
    ),
    Operation(
        path="/v2/health/live",
        method="get",
        name="serverLive",
        summary="Whether this process answers.",
        response=schemas.ServerLive,
        failure=schemas.KServeError,
        errors=(503,),
    ),
    Operation(
        path="/v2/health/ready",
        method="get",
        name="serverReady",
        summary="Whether every engine serves.",
        response=schemas.ServerReady,
        failure=schemas.KServeError,
        errors=(503,),
    ),
    Operation(
        path=_MODEL,
        method="get",
        name="modelMetadata",
        summary="What a model takes and gives.",
        response=schemas.ModelMetadata,
        failure=schemas.KServeError,
        errors=(404,),
    ),
    Operation(
        path=f"{_MODEL}/ready",
        method="get",
        name="modelReady",
        summary="Whether a model serves.",
        response=schemas.ModelReady,
        failure=schemas.KServeError,
        errors=(404, 503),
    ),
    Operation(
        path="/v2/repository/index",
        method="post",
        name="repositoryIndex",
        summary="The models that the caller may use.",
        request=schemas.IndexRequest,
        response=list[schemas.IndexEntry],
        failure=schemas.KServeError,
        errors=(400, 413),
    ),
)


def kserve_routes(models: ModelRegistry, gate: Gate, *, body_limit: int) -> list[Route]:
    """The routes below /v2."""
    model = "/v2/models/{model:path}"

    def page(path: str, app: ASGIApp) -> Route:
        return Route(path, Guarded(app, gate, Action.LIST_MODELS), methods=["GET"])

    return [
        Route(f"{model}/infer", Infer(gate, body_limit=body_limit), methods=["POST"]),
        Route(f"{model}/generate", Generate(gate, body_limit=body_limit, streams=False), methods=["POST"]),
        Route(
            f"{model}/generate_stream", Generate(gate, body_limit=body_limit, streams=True), methods=["POST"]
        ),
        Route("/v2/health/live", pages.Live(models), methods=["GET"]),
        Route("/v2/health/ready", pages.Ready(models), methods=["GET"]),
        page("/v2", pages.GetServer()),
        page(f"{model}/ready", pages.GetModelReady(gate)),
        page(model, pages.GetModel(gate)),
        Route("/v2/repository/index", pages.Index(gate, body_limit=body_limit), methods=["POST"]),
    ]
