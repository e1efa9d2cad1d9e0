"""The gateway as one ASGI application: routes, middleware, error bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from airi.gateway import system
from airi.gateway.access import Access
from airi.gateway.admin.route import AdminRoute
from airi.gateway.admin.routes import admin_routes
from airi.gateway.anthropic.messages import CountTokens, Messages
from airi.gateway.errors import ApiError
from airi.gateway.explaining import Traces
from airi.gateway.gate import Gate, Government
from airi.gateway.guarded import Guarded
from airi.gateway.http import record_of
from airi.gateway.kserve.routes import kserve_routes
from airi.gateway.metrics import Metrics
from airi.gateway.middleware import AccessMiddleware, ASGIApp, RequestMiddleware
from airi.gateway.models import ModelRegistry
from airi.gateway.openai.chat import ChatCompletions
from airi.gateway.openai.classify import Classify
from airi.gateway.openai.completions import Completions
from airi.gateway.openai.embeddings import Embeddings
from airi.gateway.openai.responses import Responses
from airi.gateway.openai.scores import Rerank, Scores
from airi.gateway.openai.tokens import Detokenize, Tokenize
from airi.gateway.openapi import openapi_document
from airi.gateway.options import AppOptions
from airi.gateway.retrieval.figures import CollectionFigures
from airi.gateway.retrieval.finding import Finder
from airi.gateway.retrieval.routes import retrieval_routes
from airi.gateway.retrieval.served import Collections
from airi.policy.decisions import Action
from airi.policy.keys import key_hider
from airi.policy.ring import name_of_fixed

if TYPE_CHECKING:
    from airi.config.reload import Reloader
    from airi.gateway.rollouts import Rollouts

_EXPOSED = [
    "x-request-id",
    "request-id",
    "retry-after",
    "x-airi-release",
    "x-airi-model",
    "x-airi-replica",
    "x-airi-request-id",
    *(
        f"x-ratelimit-{what}-{kind}"
        for kind in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
]
"""Headers that scripts of other origins may read."""


def create_app(
    models: ModelRegistry,
    metrics: Metrics,
    options: AppOptions,
    *,
    access: Access,
    government: Government,
    reloader: Reloader | None = None,
    rollouts: Rollouts | None = None,
    collections: Collections | None = None,
) -> Starlette:
    """The ASGI application over these models. Unknown paths and methods get OpenAI error bodies, too.

    `reloader` holds the config that is served; None without one. `rollouts`: None where no model has versions;
    `collections`: None where there are none.
    """
    hide = key_hider({key.strip(): name_of_fixed(i) for i, key in enumerate(options.api_keys)})
    middleware = [
        Middleware(RequestMiddleware, metrics=metrics, hide=hide),
        Middleware(AccessMiddleware, access=access, government=government, origins=options.cors_origins),
    ]
    if options.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        middleware.insert(0, cors)
    if collections is not None:
        metrics.watch(CollectionFigures(collections))
    traces = Traces(hide=hide)
    gate = Gate(models, government, metrics=metrics, traces=traces)
    app = Starlette(
        routes=[
            *_routes(models, metrics, access, gate, options, collections or Collections([])),
            *kserve_routes(
                models,
                gate,
                rollouts,
                lambda work: AdminRoute({"POST": work}, gate, needs_key=access.needs_key, hide=hide),
                body_limit=options.body_limit,
            ),
            *admin_routes(models, access, government, reloader, hide, rollouts, traces=traces),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    return app


def _routes(
    models: ModelRegistry,
    metrics: Metrics,
    access: Access,
    gate: Gate,
    options: AppOptions,
    collections: Collections,
) -> list[BaseRoute]:
    limit = options.body_limit
    finder = Finder(gate, collections)
    sizes = (model.info.vocab_size for model in models.all_versions if model.upstream is None)
    vocab_size = max(sizes, default=1)
    open_paths = access.open_paths if access.needs_key else None
    document = openapi_document(
        models=models.names,
        vocab_size=vocab_size,
        open_paths=open_paths,
        metrics_page=options.metrics_page,
    )

    def page(path: str, app: ASGIApp, action: Action) -> Route:
        is_open = access.needs_key and path in access.open_paths
        return Route(path, app if is_open else Guarded(app, gate, action), methods=["GET"])

    tokenize = Tokenize(gate, body_limit=limit)
    detokenize = Detokenize(gate, body_limit=limit)
    post, get = ["POST"], ["GET"]
    pages = [page("/metrics", system.MetricsPage(metrics), Action.METRICS)] if options.metrics_page else []
    # The hot ones first: routes are tried in order.
    return [
        Route("/v1/chat/completions", ChatCompletions(gate, body_limit=limit, finder=finder), methods=post),
        Route("/v1/completions", Completions(gate, body_limit=limit), methods=post),
        Route("/v1/responses", Responses(gate, body_limit=limit), methods=post),
        Route("/v1/messages", Messages(gate, body_limit=limit), methods=post),
        Route("/v1/embeddings", Embeddings(gate, body_limit=limit), methods=post),
        Route("/v1/rerank", Rerank(gate, body_limit=limit), methods=post),
        Route("/v1/score", Scores(gate, body_limit=limit), methods=post),
        Route("/classify", Classify(gate, body_limit=limit), methods=post),
        *retrieval_routes(gate, finder, body_limit=limit),
        Route("/v1/messages/count_tokens", CountTokens(gate, body_limit=limit), methods=post),
        Route("/health", system.Health(models), methods=get),
        Route("/ready", system.Ready(models), methods=get),
        *pages,
        Route("/version", system.Version(), methods=get),
        page("/openapi.json", system.OpenApiPage(document), Action.LIST_MODELS),
        page("/v1/models", system.ListModels(gate), Action.LIST_MODELS),
        page("/v1/models/{model:path}", system.GetModel(gate), Action.LIST_MODELS),
        Route("/tokenize", tokenize, methods=post),
        Route("/v1/tokenize", tokenize, methods=post),
        Route("/detokenize", detokenize, methods=post),
        Route("/v1/detokenize", detokenize, methods=post),
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (unknown route, wrong method) as OpenAI error bodies."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404 and request.url.path.startswith("/v1/responses/"):
        message, code = "no response is stored here; a request has all of its conversation", "not_stored"
    elif status == 404:
        message, code = "no such route; GET /openapi.json lists all", "unknown_route"
    elif status == 405:
        message, code = f"{request.method} is not allowed here", "method_not_allowed"
    else:
        message, code = "the request cannot be served", "http_error"
    headers = dict(getattr(error, "headers", None) or {})
    record = record_of(request.scope)
    body = record.dialect.error_body(ApiError(status, message, code=code), record.request_id)
    return Response(body, status_code=status, headers=headers, media_type="application/json")
