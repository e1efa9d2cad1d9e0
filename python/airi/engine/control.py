"""Calls from clients of an engine process: each is done and answered, some a few steps later."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from airi import _core
from airi.engine.engine import Engine
from airi.engine.kv_watch import KvWatch
from airi.engine.loading import Addition
from airi.engine.options import ModelOptions
from airi.errors import AiriError, ConfigError, RequestError
from airi.transport.messages import ControlMessage, Explain, Forbid, Load, SetTenant, Sleep, Unload, WatchKv
from airi.transport.server import CLIENT_SHIFT, EngineServer

__all__ = ["Control"]

logger = logging.getLogger("airi.engine")

_SETTLED = (_core.ModelState.AWAKE, _core.ModelState.ASLEEP, _core.ModelState.REMOVED)


class Control:
    """Does what calls ask for and answers each once.

    *Thread safety*: none; the engine's thread owns it.
    """

    def __init__(self, engine: Engine, server: EngineServer, on_models: Callable[[], None]) -> None:
        """`on_models` is called when other models are served than before."""
        self._engine = engine
        self._server = server
        self._on_models = on_models
        self.kv = KvWatch(engine, server)
        """Of clients that watch KV blocks."""
        self._moving: list[tuple[int, int]] = []
        """Calls that wait for a model to be where it was sent: number, model."""
        self._making: list[tuple[int, Future[None]]] = []
        """Calls that wait for masks of forbidden texts."""
        self._to_load: deque[tuple[int, ModelOptions]] = deque()
        """Calls for models that are loaded one after the other."""
        self._loading: tuple[int, Future[Addition]] | None = None
        self._loader: ThreadPoolExecutor | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a call is to be answered without anything that a step would do."""
        return bool(self._making or self._loading)

    def handle(self, message: ControlMessage) -> None:
        """Does one call; an error is its answer."""
        self._answer(message.call, lambda: self._do(message))

    def _answer(self, call: int, work: Callable[[], None]) -> None:
        try:
            work()
        except AiriError as error:
            self._server.reply(call, error=error)
        except Exception:  # one malformed call must not end the requests of others
            logger.exception("a call failed")
            failed = RequestError("the call could not be done; see the engine's log")
            self._server.reply(call, error=failed)

    def answer_settled(self) -> None:
        """Answers calls whose models or masks have arrived, or that sleep on. To be called after every step."""
        for call, model in self._moving:
            if self._engine.model_state(model) in _SETTLED:
                self._server.reply(call, error=self._engine.wake_failure(model))
        self._moving = [
            (call, model) for call, model in self._moving if self._engine.model_state(model) not in _SETTLED
        ]
        for call, made in self._making:
            if made.done():
                self._answer_made(call, made)
        self._making = [(call, made) for call, made in self._making if not made.done()]
        self._load_next()

    def _load_next(self) -> None:
        """Has a model that is loaded join the others, and begins with the next one."""
        if self._loading is not None and self._loading[1].done():
            (call, loaded), self._loading = self._loading, None
            self._answer(call, lambda: self._join(call, loaded))
        if self._loading is None and self._to_load:
            call, options = self._to_load.popleft()
            self._loader = self._loader or ThreadPoolExecutor(1, thread_name_prefix="airi-load")
            self._loading = call, self._loader.submit(self._engine.load_model, options)

    def _join(self, call: int, loaded: Future[Addition]) -> None:
        hosted = self._engine.join(loaded.result())
        self._moving.append((call, hosted.index))
        self._on_models()

    def forget_client(self, number: int) -> None:
        """A client has gone: nobody names its sets of forbidden texts any more."""
        self._engine.forbid(number, [])
        self.kv.forget_client(number)

    def _answer_made(self, call: int, made: Future[None]) -> None:
        error = made.exception()
        if error is not None and not isinstance(error, AiriError):
            logger.error("masks of forbidden texts could not be made", exc_info=error)
            error = RequestError("the call could not be done; see the engine's log")
        self._server.reply(call, error=error)

    def _do(self, message: ControlMessage) -> None:
        engine = self._engine
        if isinstance(message, SetTenant):
            engine.set_tenant(message.tenant, message.weight, kv_quota=message.kv_quota)
            self._server.reply(message.call)
        elif isinstance(message, Explain):
            self._server.reply(message.call, lines=engine.explain(message.request_id))
        elif isinstance(message, WatchKv):
            self.kv.watch(message.call >> CLIENT_SHIFT)
            self._server.reply(message.call)
        elif isinstance(message, Forbid):
            sets = [(each.forbidden, each.models) for each in message.sets]
            self._making.append((message.call, engine.forbid(message.call >> CLIENT_SHIFT, sets)))
        elif isinstance(message, Load):
            self._to_load.append((message.call, _options(message.options)))
            self._load_next()
        elif isinstance(message, Unload):
            model = engine.find_model(message.model)
            if len(engine.served) == 1:
                raise ConfigError(
                    f"{model.name} is the only model; an engine serves one at least", field="model"
                )
            engine.remove_model(model.index, drains=message.drains)
            self._moving.append((message.call, model.index))
            self._on_models()
        else:
            model = engine.find_model(message.model)
            change = engine.sleep if isinstance(message, Sleep) else engine.wake
            change(model.index)
            self._moving.append((message.call, model.index))


def _options(encoded: bytes) -> ModelOptions:
    try:
        return msgspec.json.decode(encoded, type=ModelOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of the model: {error}", field="models") from None
