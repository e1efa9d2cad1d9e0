"""`airi serve`: models behind an OpenAI-compatible server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from airi.cli._flags import given_names, takes_groups
from airi.cli._model_flags import ModelFlags
from airi.cli._serve_flags import EngineFlags, HttpFlags, MemoryFlags, ScheduleFlags, engine_options
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions
    from airi.gateway.options import ServerOptions

_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFlags:
    """What is told on stderr."""

    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info"


@takes_groups
def serve(
    models: ModelFlags,
    http: HttpFlags,
    engine: EngineFlags,
    memory: MemoryFlags,
    schedule: ScheduleFlags,
    log: LogFlags,
) -> None:
    """Serve models over OpenAI's API: chat, completions, streams, metrics.

    Try `airi serve` and ask the demonstration model, or `airi serve ./my-checkpoint --port 9000`.
    """
    setup_logging(log.log_level)
    server_options = http.options(chat_template=models.chat_template)
    if engine.engine is None:
        _run(engine_options(models, engine, memory, schedule), server_options, log.log_level)
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
    _run(engine.engine, server_options, log.log_level)


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


def _run(source: EngineOptions | str, options: ServerOptions, log_level: str) -> None:
    import uvloop

    from airi.cli._serve_output import ServeOutput
    from airi.gateway.launch import launch

    if isinstance(source, str):
        logging.getLogger("airi.gateway").info("waiting for the engine at %s", source)
    with ServeOutput() as output:
        run = launch(
            source,
            options,
            log_level=log_level.lower(),
            on_progress=output.progress,
            on_listening=output.listening,
        )
        uvloop.run(run)
