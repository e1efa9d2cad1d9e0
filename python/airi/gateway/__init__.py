"""The HTTP front of AIRI: OpenAI's API over the engines, with streams, metrics and clear errors."""

from __future__ import annotations

from airi.gateway.app import AppOptions, create_app
from airi.gateway.server import ServerOptions, serve

__all__ = ["AppOptions", "ServerOptions", "create_app", "serve"]
