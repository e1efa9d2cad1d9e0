"""From options to a running server: binds, starts or finds the engine, serves, ends both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from airi.gateway.options import ServerOptions
from airi.transport import EngineClient, Progress

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions
    from airi.gateway.server import Listening


async def launch(
    source: EngineOptions | str,
    options: ServerOptions,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_listening: Callable[[Listening], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT and returns once everything has drained.

    `source` describes the engine to start, or is the endpoint of one that runs. Raises AiriError for what the user
    can mend: a taken port, a broken checkpoint, options that do not fit.
    """
    from airi.gateway.server import Stop, bind, serve

    with Stop().installed() as stop:
        sock = bind(options.host, options.port)
        try:
            async with _engine(source, on_progress) as client:
                await serve(client, options, sock, stop=stop, on_listening=on_listening)
        except asyncio.CancelledError:
            if not stop.requested:
                raise
        finally:
            sock.close()


@asynccontextmanager
async def _engine(
    source: EngineOptions | str, on_progress: Callable[[Progress], None] | None
) -> AsyncIterator[EngineClient]:
    if not isinstance(source, str):
        raise NotImplementedError
    async with await EngineClient.connect(source, on_progress=on_progress) as client:
        yield client
