"""From a config to what the engine and the gateway take. Imports them when it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airi import builtin
from airi._sources import is_remote
from airi.config.load import ConfigFile
from airi.config.models import Engine, EngineSettings, Model
from airi.config.references import ENGINE_WIDE
from airi.config.tenants import Oidc
from airi.errors import ConfigError, ConfigFileError
from airi.lifecycle.registry import version_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from airi.engine.options import EngineOptions, ModelOptions
    from airi.gateway.options import ServerOptions, UpstreamModel
    from airi.outputs import Task
    from airi.policy.oidc import OidcOptions
    from airi.policy.tenants import TenantOptions

__all__ = [
    "TASKS",
    "check_served",
    "engine_options",
    "model_path",
    "server_options",
    "source_path",
    "tenant_options",
    "version_options",
]

TASKS: dict[str, Task] = {"chat": "generate", "embed": "embed", "classify": "classify"}
"""What models do, by the names that a config has for it."""
_ENGINE_NAMES = {"max_num_batched_tokens": "max_batch_tokens", "enable_prefix_caching": "prefix_caching"}
"""Settings whose names here are vLLM's, with the engine's own."""
_PAGES = {"metrics": "/metrics", "openapi": "/openapi.json"}
_FILES = ("disk_kv_path", "record_steps")
_SAME_OF_UPSTREAM = (
    *("base_url", "model", "api_key", "timeout_s", "connect_timeout_s", "first_token_timeout_s"),
    *("idle_timeout_s", "max_retries", "health_interval_s", "trusted", "cache_salt_key"),
)
"""Settings of an upstream that it takes as they are."""


_LEAST_KV = 1
"""Bytes of memory for keys and values of a version: with any bound memory moves, so that others can come."""


def engine_options(
    file: ConfigFile,
    *,
    sources: Mapping[str, str] | None = None,
    versions: Mapping[str, Collection[str]] | None = None,
) -> EngineOptions:
    """The engine that runs a config's models. Raises ConfigFileError for what the engine alone can tell is wrong.

    `sources`: by model, or `MODEL@ID`, where it comes from instead, as a lock pins it. `versions`: of models whose
    versions come and go, those to begin with; left out: the first one of each.
    """
    from airi.engine.options import EngineOptions

    config = file.config
    engine = config.engine
    given: dict[str, Any] = {
        "device": engine.device,
        "models": tuple(_models(file, sources, versions)),
    }
    given |= {"dtype": engine.dtype, "max_model_len": engine.max_model_len}
    for name in ENGINE_WIDE:
        values = [getattr(engine, name), *(getattr(model.engine, name) for model in config.models)]
        given[_ENGINE_NAMES.get(name, name)] = next((value for value in values if value is not None), None)
    for name in Engine.model_fields.keys() - EngineSettings.model_fields.keys() - {"replicas"}:
        value = getattr(engine, name)
        given[name] = str(file.resolve(value).absolute()) if name in _FILES and value is not None else value
    try:
        return EngineOptions(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        name = next(
            (ours for ours, theirs in _ENGINE_NAMES.items() if theirs == error.field), error.field or ""
        )
        line = file.document.line(("engine", name))
        raise ConfigFileError([f"{file.document.name}:{line}: engine: {file.masked(str(error))}"]) from None


def _models(
    file: ConfigFile, sources: Mapping[str, str] | None, versions: Mapping[str, Collection[str]] | None
) -> Iterator[ModelOptions]:
    versioned = file.config.versioned
    for model in file.config.models:
        if model in versioned:
            for id in (versions or {}).get(model.name, (model.versions[0].id,)):
                yield version_options(file, model.name, id, sources=sources)
        elif model.upstream is None:
            path = (sources or {}).get(model.name) or model_path(file, model)
            yield _options(model, path, model.name, model.aliases)


def version_options(
    file: ConfigFile, model: str, version: str, *, sources: Mapping[str, str] | None = None
) -> ModelOptions:
    """How an engine runs a version of a model. Raises ConfigError where the config does not have it."""
    found = next((each for each in file.config.models if each.name == model), None)
    known = {} if found is None else {each.id: each.source for each in found.versions}
    name = version_name(model, version)
    if found is None or version not in known:
        raise ConfigError(f"{file.path} has no {name}", field="versions")
    path = (sources or {}).get(name) or source_path(file, known[version])
    return replace(_options(found, path, name, ()), kv_min=found.resources.kv_memory.min or _LEAST_KV)


def _options(model: Model, path: str, name: str, aliases: tuple[str, ...]) -> ModelOptions:
    from airi.engine.options import ModelOptions

    slo, memory = model.slo, model.resources.kv_memory
    return ModelOptions(
        path=path,
        name=name,
        aliases=aliases,
        weight=model.resources.share,
        kv_share=model.resources.kv_share,
        kv_min=memory.min,
        kv_max=memory.max,
        sleepable=model.resources.sleepable,
        max_model_len=model.engine.max_model_len,
        dtype=model.engine.dtype,
        ttft_ms=None if slo.ttft_ms is None else slo.ttft_ms.p99,
        itl_ms=None if slo.itl_ms is None else slo.itl_ms.p99,
    )


def check_served(file: ConfigFile, served: Mapping[str, Collection[str]]) -> None:
    """Raises ConfigFileError where an engine serves other models than a config's; `served`: their aliases by name.

    All that it serves must be in the config: a model that is not has neither price nor rules.
    """
    mistakes = []
    for i, model in enumerate(file.config.models):
        if model.upstream is not None:
            continue
        if model.name not in served:
            accepted = f"what the engine serves, one of: {', '.join(served)}"
            mistakes.append(file.mistake(("models", i, "name"), accepted))
        for k, alias in enumerate(model.aliases):
            if alias not in served.get(model.name, (alias,)):
                accepted = f"an alias that the engine has for {model.name}: {', '.join(served[model.name]) or 'none'}"
                mistakes.append(file.mistake(("models", i, "aliases", k), accepted))
    missing = served.keys() - {model.name for model in file.config.models if model.upstream is None}
    if missing:
        without = f"without {', '.join(sorted(missing))}"
        mistakes.append(file.mistake(("models",), "all that the engine serves", value=without))
    if mistakes:
        raise ConfigFileError(mistakes)


def model_path(file: ConfigFile, model: Model) -> str:
    """Where a model's checkpoint is, as the engine takes it: relative folders are from the config's."""
    return source_path(file, model.location)


def source_path(file: ConfigFile, source: str) -> str:
    """As `model_path`, for what a config says of a source."""
    if is_remote(source):
        return source
    if source == builtin.NAME and not file.resolve(source).is_dir():
        return builtin.resolve(None)
    return str(file.resolve(source))


def tenant_options(file: ConfigFile) -> tuple[TenantOptions, ...]:
    """The tenants that are served. Raises ConfigFileError for what the policies' own checks find wrong."""
    from airi.policy.tenants import TenantOptions

    options: list[TenantOptions] = []
    mistakes = []
    for i, tenant in enumerate(file.config.tenants):
        try:
            made = TenantOptions(
                name=tenant.name,
                groups=tenant.groups,
                priority=tenant.priority,
                max_priority=tenant.max_priority,
                weight=tenant.weight,
                region=tenant.region,
                key_prefix=tenant.auth.key_prefix,
                oidc=_oidc(tenant.auth.oidc),
            )
        except ConfigError as error:
            mistakes.append(file.mistake(("tenants", i), file.masked(str(error))))
        else:
            options.append(made)
    if mistakes:
        raise ConfigFileError(mistakes)
    return tuple(options)


def _oidc(oidc: Oidc | None) -> OidcOptions | None:
    from airi.policy.oidc import OidcOptions

    if oidc is None:
        return None
    given = {name: getattr(oidc, name) for name in Oidc.model_fields}
    return OidcOptions(**{name: value for name, value in given.items() if name != "algorithms" or value})


def server_options(file: ConfigFile) -> ServerOptions:
    """The gateway that serves a config's models."""
    from airi.gateway.options import AppOptions, ServerOptions

    config, server = file.config, file.config.server
    chats = (model for model in config.models if model.upstream is None and model.task == "chat")
    template = next((model.chat_template for model in chats), None)
    app = AppOptions(
        state=file.state if config.tenants else None,
        tenants=tenant_options(file),
        cors_origins=server.cors.origins,
        body_limit=server.body_limit,
        metrics_page=config.observability.prometheus,
        open_pages=tuple(path for name, path in _PAGES.items() if getattr(server.open, name)),
    )
    return ServerOptions(
        app=app,
        host=server.host.strip("[]"),
        port=server.port,
        grpc_port=server.grpc_port,
        tls_cert=None if server.tls is None else file.resolve(server.tls.cert),
        tls_key=None if server.tls is None else file.resolve(server.tls.key),
        chat_template=None if template is None else file.resolve(template),
        drain_timeout_s=server.drain_timeout_s,
        upstreams=tuple(_upstreams(file)),
        tasks={model.name: TASKS[model.task] for model in config.models},
    )


def _upstreams(file: ConfigFile) -> Iterator[UpstreamModel]:
    from airi.gateway.options import UpstreamModel
    from airi.upstreams.options import UpstreamOptions

    for i, model in enumerate(file.config.models):
        given = model.upstream
        if given is None:
            continue
        same = {name: getattr(given, name) for name in _SAME_OF_UPSTREAM}
        breaker = given.circuit_breaker
        yield UpstreamModel(
            options=UpstreamOptions(
                name=model.name, breaker_failures=breaker.failures, breaker_open_s=breaker.open_s, **same
            ),
            aliases=model.aliases,
            max_model_len=given.max_model_len,
            tokenizer=None if given.tokenizer is None else file.resolve(given.tokenizer),
            place=i,
        )
