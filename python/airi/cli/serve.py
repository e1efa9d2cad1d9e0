"""`airi serve`: models behind an OpenAI-compatible server."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airi import builtin
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions, ModelOptions
    from airi.engine.targets import TargetMs
    from airi.gateway.options import ServerOptions

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?) ?([kmg]i?)?b?", re.IGNORECASE)
_LOG_LEVELS = ("debug", "info", "warning", "error")

_ENGINE = "Engine"
_HTTP = "HTTP"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Checkpoint folders or hf://org/name[@revision], served under their base names; "
            "NAME=PATH gives another name. "
            "Left out: the small demonstration model that comes with AIRI.",
            show_default=False,
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_HTTP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", rich_help_panel=_HTTP)] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name for the model; may be repeated. With several models: MODEL=NAME.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AIRI_API_KEY",
            help="Key that clients must send; may be repeated. Keys share the device evenly.",
            show_envvar=True,
            rich_help_panel=_HTTP,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web origin whose scripts may call, or *; may be repeated.", rich_help_panel=_HTTP),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM); turns on HTTPS.", rich_help_panel=_HTTP)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate (PEM).", rich_help_panel=_HTTP)
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="File that replaces the models' chat template.", rich_help_panel=_HTTP)
    ] = None,
    max_body: Annotated[
        str, typer.Option(help="Largest request body accepted.", rich_help_panel=_HTTP)
    ] = "32MiB",
    drain_timeout: Annotated[
        float,
        typer.Option(help="Seconds that running requests get after SIGTERM.", rich_help_panel=_HTTP),
    ] = 120.0,
    device: Annotated[str, typer.Option(help="Where to run: auto, cpu.", rich_help_panel=_ENGINE)] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="auto (as the checkpoint says), float32 or bfloat16.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute; left out: all cores.", rich_help_panel=_ENGINE)
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Prompt and answer together, in tokens; left out: the model's window.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(help="Requests that run at the same time.", rich_help_panel=_ENGINE)
    ] = 256,
    max_queued: Annotated[
        int, typer.Option(help="Requests that may wait; more get status 429.", rich_help_panel=_ENGINE)
    ] = 4096,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for keys and values, such as 8GiB or 500MB; left out: half of what is free.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    host_kv_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for copies of keys and values that leave --kv-memory, such as 32GiB; left out: none.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    disk_kv_path: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what leaves --host-kv-memory in turn, on a fast disk.", rich_help_panel=_ENGINE
        ),
    ] = None,
    disk_kv_memory: Annotated[
        str | None,
        typer.Option(help="How much of that disk to take, such as 200GiB.", rich_help_panel=_ENGINE),
    ] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per KV block.", rich_help_panel=_ENGINE)] = 16,
    async_scheduling: Annotated[
        bool,
        typer.Option(help="Plan each step while the one before it runs.", rich_help_panel=_ENGINE),
    ] = True,
    ttft_ms: Annotated[
        list[str] | None,
        typer.Option(
            help="Milliseconds that a request is promised from its arrival to the first token; PRIORITY=MS for those "
            "of one priority, may be repeated. Left out: no promise.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    itl_ms: Annotated[
        list[str] | None,
        typer.Option(
            help="Milliseconds that a stream is promised from one token to the next; otherwise as --ttft-ms.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    fairness_gap_tokens: Annotated[
        int | None,
        typer.Option(
            help="How far, in tokens, a waiting API key may fall behind another in service before a request of that "
            "one makes way; left out: it waits until others finish.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    schedule_policy: Annotated[
        str,
        typer.Option(
            help="Who of the waiting goes first: lpm, whose prompt has the longest cached prefix, within what its API "
            "key is due; or fcfs, the first of the API key that was served least.",
            rich_help_panel=_ENGINE,
        ),
    ] = "lpm",
    locality_quantum_tokens: Annotated[
        int,
        typer.Option(
            help="With lpm: how far, in tokens, an API key may be served ahead of others for its cached prefixes.",
            rich_help_panel=_ENGINE,
        ),
    ] = 4096,
    dedupe_steps: Annotated[
        int,
        typer.Option(
            help="Steps that a prompt may wait for a prefix which another is just computing; 0: never.",
            rich_help_panel=_ENGINE,
        ),
    ] = 128,
    isolate_tenants: Annotated[
        bool,
        typer.Option(
            help="API keys share no cached prefixes, so that none learns what others have sent.",
            rich_help_panel=_ENGINE,
        ),
    ] = False,
    record_steps: Annotated[
        Path | None,
        typer.Option(
            help="Record everything that the scheduler is told into this file, for `airi simulate --replay`. "
            "Token ids are replaced by others drawn at random, equal ones by equal ones, so that shared "
            "beginnings stay visible and texts do not.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Use the engine that runs at this endpoint (ipc://... or tcp://...) instead of starting one.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve models over OpenAI's API: chat, completions, streams, metrics.

    Try `airi serve` and ask the demonstration model, or `airi serve ./my-checkpoint --port 9000`.
    """
    setup_logging(log_level)
    server_options = _server_options(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(cors_origin or ()),
        body_limit=parse_size("max_body", max_body),
        tls=(tls_cert, tls_key),
        chat_template=chat_template,
        drain_timeout_s=drain_timeout,
    )
    if engine is not None and (models or served_model_name):
        raise ConfigError(
            "--engine: the engine at an endpoint has its models and names already; give none here"
        )
    engine_options = None
    if engine is None:
        engine_options = _engine_options(
            models=named_models(models or [builtin.NAME], served_model_name or []),
            device=device,
            dtype=dtype,
            threads=threads,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_queued=max_queued,
            kv_memory=None if kv_memory is None else parse_size("kv_memory", kv_memory),
            host_kv_memory=0 if host_kv_memory is None else parse_size("host_kv_memory", host_kv_memory),
            disk_kv_path=None if disk_kv_path is None else str(disk_kv_path.absolute()),
            disk_kv_memory=0 if disk_kv_memory is None else parse_size("disk_kv_memory", disk_kv_memory),
            block_size=block_size,
            async_scheduling=async_scheduling,
            ttft_ms=parse_target("ttft_ms", ttft_ms or []),
            itl_ms=parse_target("itl_ms", itl_ms or []),
            fairness_gap_tokens=fairness_gap_tokens,
            schedule_policy=schedule_policy,
            locality_quantum_tokens=locality_quantum_tokens,
            dedupe_steps=dedupe_steps,
            isolate_tenants=isolate_tenants,
            record_steps=None if record_steps is None else str(record_steps.absolute()),
        )
    _run(engine_options or engine or "", server_options, log_level)


def parse_size(name: str, text: str) -> int:
    """Bytes of a size such as 8GiB, 500MB or 4096; ConfigError names what is accepted."""
    match = _SIZE.fullmatch(text.strip())
    size = 0 if match is None else int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if size < 1:
        raise ConfigError(f"{name} is {text!r}; give bytes or a size such as 8GiB or 500MB", field=name)
    return size


def parse_target(name: str, given: Sequence[str]) -> TargetMs:
    """A target from MS, which is for every priority that has none of its own, and PRIORITY=MS."""
    from airi.sampling_params import MAX_PRIORITY

    everyone: float | None = None
    own: dict[int, float] = {}
    for text in given:
        priority, separator, millis = text.rpartition("=")
        try:
            if separator:
                own[int(priority)] = float(millis)
            else:
                everyone = float(millis)
        except ValueError:
            raise ConfigError(
                f"{name} is {text!r}; give milliseconds, or PRIORITY=MS such as -4=5000", field=name
            ) from None
    if everyone is None or not own:
        return tuple(own.items()) or everyone
    rest = dict.fromkeys(range(-MAX_PRIORITY, MAX_PRIORITY + 1), everyone)
    return tuple((rest | own).items())


def named_models(paths: Sequence[str], names: Sequence[str]) -> tuple[ModelOptions, ...]:
    """Models with their further names: NAME where there is one model, MODEL=NAME where there are several.

    A path may be NAME=PATH.
    """
    from airi.engine.options import ModelOptions

    models = [_model(given) for given in paths]
    aliases: dict[str, list[str]] = {}
    for model, given in zip(models, paths, strict=True):
        if model.name in aliases:
            path = given.removeprefix(f"{model.name}=")
            raise ConfigError(
                f"model name {model.name!r} is given twice; give one of them another: NAME={path}",
                field="models",
            )
        aliases[model.name] = []
    for given in names:
        target, separator, alias = given.rpartition("=")
        if not separator and len(models) == 1:
            target = models[0].name
        if target not in aliases or not alias:
            known = ", ".join(aliases)
            raise ConfigError(
                f"served_model_name is {given!r}; with several models give MODEL=NAME, MODEL one of: {known}",
                field="served_model_name",
            )
        if alias != target and alias not in aliases[target]:
            aliases[target].append(alias)
    return tuple(ModelOptions(path=m.path, name=m.name, aliases=tuple(aliases[m.name])) for m in models)


def _model(given: str) -> ModelOptions:
    """A model from PATH or NAME=PATH. What is a path as it stands, or can only be one, names nothing."""
    from airi.engine.options import ModelOptions

    name, separator, path = given.partition("=")
    if not (separator and name and path) or given.startswith((".", "/", "hf://")) or Path(given).exists():
        name, path = "", given
    return ModelOptions(path=builtin.resolve(path), name=name)


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


def _engine_options(**options: object) -> EngineOptions:
    from airi.engine.options import EngineOptions

    return EngineOptions(**options)  # type: ignore[arg-type]  # names are those of `serve`


def _server_options(
    *,
    api_keys: tuple[str, ...],
    cors_origins: tuple[str, ...],
    body_limit: int,
    tls: tuple[Path | None, Path | None],
    **options: object,
) -> ServerOptions:
    from airi.gateway import AppOptions, ServerOptions

    app = AppOptions(api_keys=api_keys, cors_origins=cors_origins, body_limit=body_limit)
    return ServerOptions(app=app, tls_cert=tls[0], tls_key=tls[1], **options)  # type: ignore[arg-type]


def _run(source: EngineOptions | str, options: ServerOptions, log_level: str) -> None:
    import uvloop

    from airi.cli._serve_output import ServeOutput
    from airi.gateway.launch import launch

    if options.app.api_keys == () and not _is_loopback(options.host):
        logging.getLogger("airi.gateway").warning(
            "%s is reachable by others and no --api-key is set", options.host
        )
    with ServeOutput() as output:
        run = launch(
            source,
            options,
            log_level=log_level.lower(),
            on_progress=output.progress,
            on_listening=output.listening,
        )
        uvloop.run(run)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
