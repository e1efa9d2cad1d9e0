"""What tests of the admin API share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from airi.config.reload import Reloader
from airi.gateway.access import open_access
from airi.gateway.app import create_app
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry
from airi.gateway.options import AppOptions
from airi.policy.keys import create_key
from airi.policy.tenants import TenantOptions
from airi.state import open_store

BASE = "http://127.0.0.1:8000"
TENANTS = (TenantOptions(name="ops", groups=("operators",)), TenantOptions(name="acme", key_prefix="sk-acme"))


@asynccontextmanager
async def server(
    options: AppOptions, *, government: Government | None = None, reloader: Reloader | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application without models."""
    government = government or Government(decider_of(None, ()))
    async with open_access(options) as access:
        app = create_app(
            ModelRegistry([]), Metrics("1"), options, access=access, government=government, reloader=reloader
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
            yield http


async def key_of(url: str, tenant: str) -> str:
    async with await open_store(url) as store:
        return (await create_key(store, tenant)).text


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
