"""`airi serve`: models behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airi.cli._flags import given_names, said_names, takes_groups
from airi.cli._model_flags import ModelFlags
from airi.cli._serve_flags import EngineFlags, HttpFlags, MemoryFlags, ScheduleFlags, engine_options
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.config.lock import Locked
    from airi.engine.options import EngineOptions
    from airi.gateway.options import ServerOptions

    Source = EngineOptions | str | Sequence[EngineOptions] | Sequence[str]

_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFlags:
    """What is told on stderr."""

    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info"


@takes_groups
def serve(
    context: typer.Context,
    models: ModelFlags,
    http: HttpFlags,
    engine: EngineFlags,
    memory: MemoryFlags,
    schedule: ScheduleFlags,
    log: LogFlags,
) -> None:
    """Serve models over OpenAI's API: chat, completions, streams, metrics.

    Try `airi serve` and ask the demonstration model, or `airi serve ./my-checkpoint --port 9000`. A path that ends in
    .yaml or .yml is a config, which says all that flags would, and more: `airi serve airi.yaml`. With --engine its
    models are those of an engine that runs, which several such servers may share, or of several.
    """
    setup_logging(log.log_level)
    config = next((path for path in models.models or () if path.lower().endswith((".yaml", ".yml"))), None)
    if config is not None:
        # AIRI_API_KEY is a client's beside a config, whose server knows its keys; AIRI_STATE is what `airi keys` takes.
        said = said_names(context, unless_exported=("api_key", "state"))
        exported = None if "state" in said else http.state
        serve_config(config, said, models.models or [], engine.engine, log.log_level, exported)
        return
    server_options = http.options(chat_template=models.chat_template)
    if engine.engine is None:
        options = engine_options(models, engine, memory, schedule)
        _run(_of_replicas(options, engine.replicas), server_options, log.log_level)
        return
    if models.are_given:
        raise ConfigError(
            "--engine: the engine at an endpoint has its models and names already; give none here"
        )
    for name in (*given_names(engine), *given_names(memory), *given_names(schedule)):
        if name != "engine":
            raise ConfigError(
                f"{name} does not go with --engine: the engine at an endpoint has its settings already",
                field=name,
            )
    _run(_at(engine.engine), server_options, log.log_level)


def serve_config(
    path: str,
    said: list[str],
    models: list[str],
    endpoints: list[str] | None,
    log_level: str,
    exported_state: str | None,
) -> None:
    """Serves what a config says, with the engines at `endpoints` where some are given.

    Raises ConfigError for flags that it leaves no room for, and for another state than the one of `airi keys`.
    """
    from airi.cli.lock import ReadingBars
    from airi.config import load
    from airi.config.cedar import check_policies
    from airi.config.content import check_content
    from airi.config.lock import locked_versions, pinned_sources
    from airi.config.options import engine_options, server_options
    from airi.config.routes import check_routes

    if len(models) > 1:
        other = next(model for model in models if model != path)
        raise ConfigError(f"models is {other!r} beside {path}; name it in that file", field="models")
    for name in said:
        if name not in ("models", "engine", "log_level"):
            where = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{where} does not go with {path}, which says that itself", field=name)
    file = load(path)
    _check_state(file, exported_state)
    check_policies(file)
    check_content(file)
    check_routes(file)
    with ReadingBars() as bars:
        sources = pinned_sources(file, bars.show) if endpoints is None or file.config.versioned else {}
        locked = locked_versions(file, bars.show) if file.config.versioned else {}
    versions = asyncio.run(_bring_up(file, locked)) if locked else {}
    if endpoints is not None:
        _run(_at(endpoints), server_options(file), log_level, file)
        return
    if all(model.upstream is not None for model in file.config.models):
        _run((), server_options(file), log_level, file)
        return
    engine = engine_options(file, sources=sources, versions=versions)
    _run(_of_replicas(engine, file.config.engine.replicas), server_options(file), log_level, file)


async def _bring_up(file: ConfigFile, locked: dict[str, Locked]) -> dict[str, tuple[str, ...]]:
    """The versions that an engine begins with, by model."""
    from airi.config.bring_up import bring_up
    from airi.state import open_store

    async with await open_store(file.state) as store:
        return await bring_up(file, locked, store)


def _check_state(file: ConfigFile, exported: str | None) -> None:
    """Raises ConfigError where keys that `airi keys` makes would not be those of the server."""
    from airi.state.urls import StateUrl

    state = StateUrl.parse(file.state)
    said = None if exported is None else StateUrl.parse(exported).below(Path.cwd())
    if said is not None and said != state:
        raise ConfigError(
            f"AIRI_STATE is {said.shown}, server.state of {file.path} is {state.shown}; "
            "accepted: the same, such as ${AIRI_STATE} in the file, or no AIRI_STATE",
            field="state",
        )


def setup_logging(level: str) -> None:
    """Plain lines on stderr for `airi.*` and the server below it; ConfigError for an unknown level."""
    if level.lower() not in _LOG_LEVELS:
        raise ConfigError(f"log_level is {level!r}; accepted: {', '.join(_LOG_LEVELS)}", field="log_level")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("airi")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    below = logging.getLogger("uvicorn")
    below.handlers[:] = [handler]
    below.setLevel(max(logging.WARNING, logger.level))


def _make_key(options: ServerOptions, config: ConfigFile | None) -> str | None:
    """The command that makes a key for such a server; None where keys are no state's."""
    from airi.state.urls import StateUrl

    if config is not None and config.config.tenants:
        return f"airi keys create {config.config.tenants[0].name} --config {shlex.quote(str(config.path))}"
    if config is not None or options.app.state is None:
        return None
    return f"airi keys create my-team --store {shlex.quote(StateUrl.parse(options.app.state).shown)}"


def _of_replicas(options: EngineOptions, count: int) -> Source:
    from airi.engine.replicas import replica_options

    replicas = replica_options(options, count)
    return replicas if count > 1 else options


def _at(endpoints: Sequence[str]) -> Source:
    """Where engines run; raises ConfigError for one that is given twice."""
    for endpoint in endpoints:
        if endpoints.count(endpoint) > 1:
            raise ConfigError(f"--engine: {endpoint} is given twice", field="engine")
    return endpoints if len(endpoints) > 1 else endpoints[0]


def _run(source: Source, options: ServerOptions, log_level: str, config: ConfigFile | None = None) -> None:
    import uvloop

    from airi.cli._serve_output import ServeOutput
    from airi.gateway.launch import launch

    for each in [source] if isinstance(source, str) or not isinstance(source, Sequence) else source:
        if isinstance(each, str):
            logging.getLogger("airi.gateway").info("waiting for the engine at %s", each)
    with ServeOutput(_make_key(options, config)) as output:
        run = launch(
            source,
            options,
            config=config,
            log_level=log_level.lower(),
            on_progress=output.progress,
            on_listening=output.listening,
        )
        uvloop.run(run)
