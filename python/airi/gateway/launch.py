"""From options to a running server: binds, starts or finds the engine, serves, ends both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from airi.errors import ConfigError
from airi.gateway.access import Access, open_access
from airi.gateway.governing import ForbiddenPart, LimitsPart, PoliciesPart, RoutesPart, open_government
from airi.gateway.lifecycle import Stop, bind
from airi.gateway.options import ServerOptions
from airi.gateway.reloading import Hangup
from airi.transport import EngineClient, EngineHandle, Progress
from airi.transport.absent import NoEngine
from airi.transport.supervisor import EngineSupervisor

if TYPE_CHECKING:
    from pathlib import Path

    from airi.config import ConfigFile
    from airi.config.reload import Part, Reloader
    from airi.engine.options import EngineOptions
    from airi.gateway.gate import Government
    from airi.gateway.kserve.grpc.server import GrpcServer
    from airi.gateway.lifecycle import Listening
    from airi.gateway.retrieval.served import Collections
    from airi.gateway.rollouts import RolloutSetup
    from airi.policy.ledger import Ledger
    from airi.routing import ReplicaSet

    Source = EngineOptions | str | Sequence[EngineOptions] | Sequence[str]


async def launch(
    source: Source,
    options: ServerOptions,
    *,
    config: ConfigFile | None = None,
    log_level: str = "warning",
    on_progress: Callable[[Progress], None] | None = None,
    on_listening: Callable[[Listening], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT and returns once everything has drained.

    `source` describes the engine to start, which logs at `log_level`, or is the endpoint of one that runs; several are
    replicas of each other, and none is needed where other servers run all models. `config` is where `options` and such
    a description came from, which SIGHUP reads again; without one that ends the process. Raises AiriError for what the
    user can mend: a taken port, a state that cannot be opened, a broken checkpoint, options that do not fit;
    EngineDeadError when the engine keeps dying.
    """
    if options.chat_template is not None:
        _check_template(options.chat_template)
    with (
        Stop().installed() as stop,
        nullcontext() if config is None else Hangup().installed() as hangup,
        closing(bind(options.host, options.port)) as sock,
    ):
        try:
            async with (
                open_grpc(options) as grpc,
                open_access(options.app) as access,
                _engine(source, log_level, on_progress) as starting,
                open_government(config) as (government, ledger),
                AsyncExitStack() as stack,
            ):
                serve = await asyncio.to_thread(_load_server)
                client = await starting
                reloader = rollouts = collections = None
                if config is not None and hangup is not None:
                    forbidden = await _told(config, government, client)
                    reloader = _reloader(config, access, government, ledger, client, forbidden)
                    hangup.reloads(partial(_hung_up, government, reloader))
                    rollouts = await _rollouts(config, source, forbidden, stack)
                    collections = await _collections(config, stack)
                more = {
                    "reloader": reloader,
                    "rollouts": rollouts,
                    "collections": collections,
                    "grpc": grpc,
                    "on_listening": on_listening,
                }
                await serve(client, options, sock, stop=stop, access=access, government=government, **more)
        except asyncio.CancelledError:
            if not stop.requested:
                raise


def _reloader(
    config: ConfigFile,
    access: Access,
    government: Government,
    ledger: Ledger | None,
    client: EngineHandle,
    forbidden: ForbiddenPart,
) -> Reloader:
    """What of the config can change while it is served."""
    from airi.config.cedar import check_policies
    from airi.config.content import check_content
    from airi.config.forbidden import check_forbidden
    from airi.config.reload import Reloader
    from airi.config.routes import check_routes
    from airi.gateway.reloading import TenantsPart

    def check(file: ConfigFile) -> None:
        check_policies(file)
        check_content(file)
        check_forbidden(file)
        check_routes(file)

    parts: list[Part] = [TenantsPart(access, client), PoliciesPart(government), RoutesPart(government)]
    parts.append(forbidden)
    if government.content is not None:
        parts.append(government.content)
    if ledger is not None:
        parts.append(LimitsPart(government, ledger))
    return Reloader(config, parts, check=check)


async def _hung_up(government: Government, reloader: Reloader) -> None:
    """SIGHUP: the audit log may have been rotated, whether the config can be reloaded or not."""
    if government.audit is not None:
        government.audit.reopen()
    await reloader.reload()


async def _told(config: ConfigFile, government: Government, client: EngineHandle) -> ForbiddenPart:
    """Tells an engine what answers may not hold, once it is known to have a config's models."""
    _check_served(config, client)
    forbidden = ForbiddenPart(government, client, names=partial(_names, client))
    await forbidden.tell()
    return forbidden


@asynccontextmanager
async def open_grpc(options: ServerOptions) -> AsyncIterator[GrpcServer | None]:
    """Takes the port for gRPC, where one is wanted. Raises ConfigError where it is taken, or without the extra."""
    if options.grpc_port is None:
        yield None
        return
    try:
        from airi.gateway.kserve.grpc.server import GrpcServer
    except ImportError:
        raise ConfigError(
            "grpc_port needs the extra grpc: pip install 'airi[grpc]'", field="grpc_port"
        ) from None
    tls = None if options.tls_cert is None or options.tls_key is None else (options.tls_cert, options.tls_key)
    server = GrpcServer(options.host, options.grpc_port, body_limit=options.app.body_limit, tls=tls)
    try:
        yield server
    finally:
        await server.close()


def _check_served(config: ConfigFile, client: EngineHandle) -> None:
    """Raises ConfigFileError for an engine with other models, which only one that ran before can have."""
    from airi.config.options import check_served

    versioned = {model.name: model.aliases for model in config.config.versioned}
    served: dict[str, Collection[str]] = {}
    for model in client.models:
        name = model.name.rpartition("@")[0]
        if name in versioned:
            served[name] = versioned[name]
        else:
            served[model.name] = model.aliases
    check_served(config, served)


def _names(client: EngineHandle, model: str) -> list[str]:
    """What the engine calls a model: its own name, or one for each version that it has."""
    return [info.name for info in client.models if model in (info.name, info.name.rpartition("@")[0])]


async def _rollouts(
    config: ConfigFile, source: Source, forbidden: ForbiddenPart, stack: AsyncExitStack
) -> RolloutSetup | None:
    """What rollouts need, where models have versions that come and go."""
    if not config.config.versioned:
        return None
    from airi.gateway.rollouts import RolloutSetup
    from airi.state import open_store

    first = source[0] if isinstance(source, Sequence) else source
    owns_engine = not isinstance(first, str)
    store = await stack.enter_async_context(await open_store(config.state))
    return RolloutSetup(file=config, store=store, tell=forbidden.tell, owns_engine=owns_engine)


async def _collections(config: ConfigFile, stack: AsyncExitStack) -> Collections | None:
    if not config.config.collections:
        return None
    from airi.gateway.retrieval.served import open_collections

    return await stack.enter_async_context(open_collections(config))


def _check_template(source: str | Path) -> None:
    """Raises ConfigError for a template that cannot be read or compiled, before any model loads."""
    from airi.text import ChatTemplate

    ChatTemplate.load(source)


def _load_server() -> Callable[..., Awaitable[None]]:
    """Imports the HTTP side, which takes about as long as a small model's weights, while the engine starts."""
    from airi.gateway.server import serve

    return serve


@asynccontextmanager
async def _engine(
    source: Source,
    log_level: str,
    on_progress: Callable[[Progress], None] | None,
) -> AsyncIterator[asyncio.Task[EngineClient] | asyncio.Task[ReplicaSet] | asyncio.Task[NoEngine]]:
    """Begins to start, or to reach, the engine, or engines; what they are called by is there once the task is done."""
    if not source:
        yield asyncio.create_task(_no_engine())
        return
    if not isinstance(source, str) and isinstance(source, Sequence):
        async with _replicas(source, log_level, on_progress) as replicas:
            yield replicas
        return
    if isinstance(source, str):
        starting = asyncio.create_task(EngineClient.connect(source, on_progress=on_progress))
        end: Callable[[], Awaitable[None]] = partial(_close, starting)
    else:
        supervisor = EngineSupervisor(source, on_progress=on_progress, log_level=log_level)
        starting = asyncio.create_task(supervisor.start())
        end = supervisor.stop
    try:
        yield starting
    finally:
        if not starting.done():
            starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await end()


def _replicas(
    source: Sequence[EngineOptions] | Sequence[str],
    log_level: str,
    on_progress: Callable[[Progress], None] | None,
) -> AbstractAsyncContextManager[asyncio.Task[ReplicaSet]]:
    from airi.routing.starting import reached, started

    endpoints = [each for each in source if isinstance(each, str)]
    if endpoints:
        return reached(endpoints, on_progress=on_progress)
    options = [each for each in source if not isinstance(each, str)]
    return started(options, log_level=log_level, on_progress=on_progress)


async def _no_engine() -> NoEngine:
    return NoEngine()


async def _close(connecting: asyncio.Task[EngineClient]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()
