"""Calls from clients of an engine process: each is done and answered, some a few steps later."""

from __future__ import annotations

import logging

from airi import _core
from airi.engine.engine import Engine
from airi.errors import AiriError, RequestError
from airi.transport.messages import ControlMessage, Explain, SetTenant, Sleep
from airi.transport.server import EngineServer

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
        """Answers calls whose models have arrived, or sleep on. To be called after every step."""
        for call, model in self._moving:
            if self._engine.model_state(model) in _SETTLED:
                self._server.reply(call, error=self._engine.wake_failure(model))
        self._moving = [
            (call, model) for call, model in self._moving if self._engine.model_state(model) not in _SETTLED
        ]

    def _do(self, message: ControlMessage) -> None:
        engine = self._engine
        if isinstance(message, SetTenant):
            engine.set_tenant(message.tenant, message.weight, kv_quota=message.kv_quota)
            self._server.reply(message.call)
        elif isinstance(message, Explain):
            self._server.reply(message.call, lines=engine.explain(message.request_id))
        else:
            model = engine.find_model(message.model)
            change = engine.sleep if isinstance(message, Sleep) else engine.wake
            change(model.index)
            self._moving.append((message.call, model.index))
