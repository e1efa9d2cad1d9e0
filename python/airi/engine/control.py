"""Calls from clients of an engine process: each is done and answered, some a few steps later."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from airi import _core
from airi.engine.engine import Engine
from airi.errors import AiriError, RequestError
from airi.transport.messages import ControlMessage, Explain, Forbid, SetTenant, Sleep
from airi.transport.server import CLIENT_SHIFT, EngineServer

__all__ = ["Control"]

logger = logging.getLogger("airi.engine")

_SETTLED = (_core.ModelState.AWAKE, _core.ModelState.ASLEEP, _core.ModelState.REMOVED)


class Control:
    """Does what calls ask for and answers each once.

    *Thread safety*: none; the engine's thread owns it.
    """

    def __init__(self, engine: Engine, server: EngineServer) -> None:
        self._engine = engine
        self._server = server
        self._moving: list[tuple[int, int]] = []
        """Calls that wait for a model to be where it was sent: number, model."""
        self._making: list[tuple[int, Future[None]]] = []
        """Calls that wait for masks of forbidden texts."""

    @property
    def is_waiting(self) -> bool:
        """Whether a call is to be answered without anything that a step would do."""
        return bool(self._making)

    def handle(self, message: ControlMessage) -> None:
        """Does one call; an error is its answer."""
        try:
            self._do(message)
        except AiriError as error:
            self._server.reply(message.call, error=error)
        except Exception:  # one malformed call must not end the requests of others
            logger.exception("a call failed")
            failed = RequestError("the call could not be done; see the engine's log")
            self._server.reply(message.call, error=failed)

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

    def forget_client(self, number: int) -> None:
        """A client has gone: nobody names its sets of forbidden texts any more."""
        self._engine.forbid(number, [])

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
        elif isinstance(message, Forbid):
            sets = [(each.forbidden, each.models) for each in message.sets]
            self._making.append((message.call, engine.forbid(message.call >> CLIENT_SHIFT, sets)))
        else:
            model = engine.find_model(message.model)
            change = engine.sleep if isinstance(message, Sleep) else engine.wake
            change(model.index)
            self._moving.append((message.call, model.index))
