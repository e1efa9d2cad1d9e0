"""All routes of the protocol, and how the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.routing import Route

from airi.gateway.admin.rollouts import RolloutAdmin
from airi.gateway.admin.route import Work
from airi.gateway.gate import Gate
from airi.gateway.guarded import Guarded
from airi.gateway.kserve import pages, schemas
from airi.gateway.kserve.infer import Generate, Infer
from airi.gateway.middleware import ASGIApp
from airi.gateway.models import ModelRegistry
from airi.gateway.operation import Operation
from airi.gateway.rollouts import Rollouts
from airi.lifecycle.status import VersionStatus
from airi.policy.decisions import Action

__all__ = ["KSERVE_OPERATIONS", "kserve_routes"]

_MODELS = (("/v2/models/{model}", ""), ("/v2/models/{model}/versions/{version}", "Version"))
"""Of a model in the version that a call is given, or in one that is named; and what ends the operations' names."""
_ERRORS = (400, 404, 413, 429, 500, 503, 504)

_operation = partial(Operation, failure=schemas.KServeError)

KSERVE_OPERATIONS = (
    *(
        operation
        for model, suffix in _MODELS
        for operation in (
            _operation(
                path=f"{model}/infer",
                method="post",
                name=f"inferModel{suffix}",
                summary="Continue texts, as tensors of the Open Inference Protocol.",
                request=schemas.InferRequest,
                response=schemas.InferResponse,
                errors=_ERRORS,
            ),
            _operation(
                path=f"{model}/generate",
                method="post",
                name=f"generateText{suffix}",
                summary="Continue a text.",
                request=schemas.GenerateRequest,
                response=schemas.GenerateResponse,
                errors=_ERRORS,
            ),
            _operation(
                path=f"{model}/generate_stream",
                method="post",
                name=f"generateTextStream{suffix}",
                summary="Continue a text, told piece by piece in server-sent events.",
                request=schemas.GenerateRequest,
                events=schemas.GenerateResponse,
                has_named_events=True,
                errors=_ERRORS,
            ),
            _operation(
                path=model,
                method="get",
                name=f"modelMetadata{suffix}",
                summary="What a model takes and gives.",
                response=schemas.ModelMetadata,
                errors=(404,),
            ),
            _operation(
                path=f"{model}/ready",
                method="get",
                name=f"modelReady{suffix}",
                summary="Whether a model serves.",
                response=schemas.ModelReady,
                errors=(404, 503),
            ),
        )
    ),
    *(
        _operation(
            path=f"/v2/repository/models/{{model}}/{verb}",
            method="post",
            name=f"{verb}RepositoryModel",
            summary=summary,
            request=schemas.RepositoryChange,
            needs_body=False,
            response=VersionStatus,
            errors=(400, 403, 404, 409, 413, 415),
        )
        for verb, summary in (
            ("load", "Have a version, MODEL@VERSION, loaded and kept."),
            ("unload", "Keep a version no more; it goes where no line of releases needs it."),
        )
    ),
    _operation(
        path="/v2",
        method="get",
        name="serverMetadata",
        summary="The server, by the Open Inference Protocol.",
        response=schemas.ServerMetadata,
    ),
    _operation(
        path="/v2/health/live",
        method="get",
        name="serverLive",
        summary="Whether this process answers.",
        response=schemas.ServerLive,
        errors=(503,),
    ),
    _operation(
        path="/v2/health/ready",
        method="get",
        name="serverReady",
        summary="Whether every engine serves.",
        response=schemas.ServerReady,
        errors=(503,),
    ),
    _operation(
        path="/v2/repository/index",
        method="post",
        name="repositoryIndex",
        summary="The models that the caller may use.",
        request=schemas.IndexRequest,
        needs_body=False,
        response=list[schemas.IndexEntry],
        errors=(400, 413),
    ),
)


def kserve_routes(
    models: ModelRegistry,
    gate: Gate,
    rollouts: Rollouts | None,
    administered: Callable[[Work], ASGIApp],
    *,
    body_limit: int,
) -> list[Route]:
    """The routes below /v2; `administered` makes a route of what operators alone may do."""

    def page(path: str, app: ASGIApp) -> Route:
        return Route(path, Guarded(app, gate, Action.LIST_MODELS), methods=["GET"])

    def of_model(path: str) -> list[Route]:
        whole, stream = (Generate(gate, body_limit=body_limit, streams=streams) for streams in (False, True))
        return [
            Route(f"{path}/infer", Infer(gate, body_limit=body_limit), methods=["POST"]),
            Route(f"{path}/generate", whole, methods=["POST"]),
            Route(f"{path}/generate_stream", stream, methods=["POST"]),
            page(f"{path}/ready", pages.GetModelReady(models, gate)),
            page(path, pages.GetModel(models, gate)),
        ]

    index = pages.Index(models, gate, rollouts, body_limit=body_limit)
    repository, change = pages.Repository(RolloutAdmin(rollouts, None)), "/v2/repository/models/{model:path}"
    return [
        *of_model("/v2/models/{model:path}/versions/{version}"),
        *of_model("/v2/models/{model:path}"),
        Route("/v2/health/live", pages.Live(models), methods=["GET"]),
        Route("/v2/health/ready", pages.Ready(models), methods=["GET"]),
        page("/v2", pages.GetServer()),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route(f"{change}/load", administered(repository.load), methods=["POST"]),
        Route(f"{change}/unload", administered(repository.unload), methods=["POST"]),
    ]
