"""The HTTP server: binds, serves until a signal, drains what runs, ends with exit status 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from airi import __version__
from airi.errors import ConfigError, EngineDeadError
from airi.gateway.access import Access
from airi.gateway.app import create_app
from airi.gateway.gate import Government
from airi.gateway.lifecycle import Listening, Stop
from airi.gateway.metrics import EngineSource, Metrics
from airi.gateway.models import ModelRegistry, ServedModel, serve_model, serve_models
from airi.gateway.options import ServerOptions
from airi.gateway.rollouts import Rollouts, RolloutSetup, versioned_models
from airi.gateway.upstreams.serving import in_places, open_upstreams
from airi.routing import Replica, ReplicaSet
from airi.transport import EngineHandle
from airi.transport.absent import NoEngine

if TYPE_CHECKING:
    from airi.config.reload import Reloader
    from airi.gateway.kserve.grpc.server import GrpcServer
    from airi.gateway.retrieval.served import Collections

# Longer than the idle time after which common HTTP clients drop a pooled connection themselves.
_KEEP_ALIVE_S = 75
_BACKLOG = 2048
_LAST_WORDS_S = 5  # for the errors that end what a drain did not finish


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which ends the process by the signal instead of status 0.

    What a drain has not finished after `drain_timeout_s` ends with an error instead of a cut connection.
    An engine that was given up ends the server, too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        client: EngineHandle,
        models: ModelRegistry,
        drain_timeout_s: float,
        grpc: GrpcServer | None,
    ) -> None:
        super().__init__(config)
        self._grpc = grpc
        self._client, self._models, self._drain_timeout_s = client, models, drain_timeout_s
        self.lost: EngineDeadError | None = None
        """Why the engine was given up, where that is what ended the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._client.dead is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lost, timeout = self._client.dead, self._drain_timeout_s
        error = EngineDeadError(f"the server shut down; running requests had {timeout:g} s to finish")
        timer = asyncio.get_running_loop().call_later(timeout, self._give_up, error)
        both = [super().shutdown(sockets)]
        if self._grpc is not None:
            both.append(self._grpc.close(timeout + _LAST_WORDS_S))
        try:
            await asyncio.gather(*both)
        finally:
            timer.cancel()

    def _give_up(self, error: EngineDeadError) -> None:
        self._client.give_up(error)
        for model in self._models.models:
            if model.upstream is not None:
                model.upstream.give_up(error)


async def serve(
    client: EngineHandle,
    options: ServerOptions,
    sock: socket.socket,
    *,
    stop: Stop,
    access: Access,
    government: Government,
    reloader: Reloader | None = None,
    rollouts: RolloutSetup | None = None,
    collections: Collections | None = None,
    grpc: GrpcServer | None = None,
    on_listening: Callable[[Listening], None] | None = None,
) -> None:
    """Answers requests with the models of `client`, of callers that `access` knows, until a signal, then drains.

    `reloader` holds the config that is served, None without one; `rollouts`: where models have versions; `collections`:
    where there are some; `grpc` answers beside. Raises ConfigError or CheckpointError for TLS files or a text side that
    cannot be used, and EngineDeadError when the engine was given up: whoever runs this process may start it afresh.
    """
    metrics = Metrics(__version__)
    _watch(metrics, client)
    await access.tell(client)
    async with (
        open_upstreams(options.upstreams, metrics) as upstreams,
        _served(client, metrics, options, upstreams, rollouts, collections) as (models, running),
    ):
        if running is not None:
            government.watching = running.watching
        app = create_app(
            models,
            metrics,
            options.app,
            access=access,
            government=government,
            reloader=reloader,
            rollouts=running,
            collections=collections,
        )
        server = _Server(_config(app, options), client, models, options.drain_timeout_s, grpc)
        if grpc is not None:
            await grpc.serve(app)
        stop.serves(server)
        listening = Listening(
            url=_url(sock, options),
            models=tuple(models.names),
            needs_key=access.needs_key,
            grpc_port=None if grpc is None else grpc.port,
        )
        await _run(server, sock, listening, on_listening)
    if server.lost is not None:
        raise server.lost


async def _run(
    server: _Server,
    sock: socket.socket,
    listening: Listening,
    on_listening: Callable[[Listening], None] | None,
) -> None:
    announcing = asyncio.ensure_future(_announce(server, listening, on_listening))
    gc.collect()  # what is alive now stays: full collections amid streams would only walk over it again
    gc.freeze()
    try:
        await server.serve(sockets=[sock])
    finally:
        announcing.cancel()
        gc.unfreeze()


@asynccontextmanager
async def _served(
    client: EngineHandle,
    metrics: Metrics,
    options: ServerOptions,
    upstreams: Sequence[ServedModel],
    setup: RolloutSetup | None,
    collections: Collections | None,
) -> AsyncIterator[tuple[ModelRegistry, Rollouts | None]]:
    """The models of all, and what has versions of them come and go until the block ends, where they have some."""
    versioned = versioned_models(None if setup is None else setup.file)
    template, names = options.chat_template, [model.name for model in versioned]
    local = serve_models(client, metrics, chat_template=template, versioned=names, tasks=options.tasks)
    models = ModelRegistry(in_places(local, upstreams, options.upstreams), versioned)
    async with AsyncExitStack() as stack:
        warm = None
        if collections is not None:
            from airi.gateway.retrieval.filling import Filling

            filling = Filling(collections, models)
            warm = filling.fill
            await stack.enter_async_context(filling.running())
        if setup is None:
            yield models, None
            return
        serve = partial(
            serve_model,
            client=client,
            metrics=metrics,
            chat_template=template,
            versioned=names,
            tasks=options.tasks,
        )
        rollouts = Rollouts(setup, client, models, serve, warm=warm)
        await stack.enter_async_context(rollouts.running())
        yield models, rollouts


def _url(sock: socket.socket, options: ServerOptions) -> str:
    host, port = sock.getsockname()[:2]
    return f"{options.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _watch(metrics: Metrics, client: EngineHandle) -> None:
    """Exposes what engines count."""
    if isinstance(client, NoEngine):
        return
    if not isinstance(client, ReplicaSet):
        metrics.watch_engine(lambda: client.stats, lambda: client.alive)
        return

    def source(replica: Replica) -> EngineSource:
        return replica.name, lambda: replica.client.stats, lambda: replica.client.alive

    decided = metrics.watch_replicas([source(replica) for replica in client.replicas])
    client.on_decision = lambda decision: decided(decision.replica, decision.took_s)


def _config(app: object, options: ServerOptions) -> uvicorn.Config:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn's own name for ASGI applications is narrower
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(options.drain_timeout_s) + _LAST_WORDS_S,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"tls_cert {options.tls_cert} and tls_key {options.tls_key} cannot be used: {reason}",
            field="tls_cert",
        ) from None
    return config


async def _announce(
    server: uvicorn.Server, listening: Listening, on_listening: Callable[[Listening], None] | None
) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    if on_listening is not None:
        on_listening(listening)
