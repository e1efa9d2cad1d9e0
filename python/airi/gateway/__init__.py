"""The HTTP front of AIRI: OpenAI's API over the engines, with streams, metrics and clear errors.

`airi.gateway.server.serve` runs it; `airi.gateway.app.create_app` is the ASGI application alone.
"""

from __future__ import annotations

from airi.gateway.options import AppOptions, ServerOptions

__all__ = ["AppOptions", "ServerOptions"]
