"""Verifiers over a test issuer."""

from __future__ import annotations

import asyncio
from typing import Any

from airi.policy.jwt import TokenVerifier
from airi.policy.oidc import OidcOptions
from airi.policy.tenants import TenantOptions, Tenants

from .issuer import AUDIENCE, TestIssuer


def tenants(issuer: TestIssuer, **oidc: Any) -> Tenants:
    options = OidcOptions(**{"issuer": issuer.url, "audience": AUDIENCE, **oidc})
    return Tenants([TenantOptions(name="acme", groups=("gold",), priority=2, oidc=options)])


async def settled(verifier: TokenVerifier) -> None:
    """Returns once what the verifier fetches has come or failed."""
    await asyncio.sleep(0)
    while tasks := [i.refreshing for i in verifier._issuers.values() if i.refreshing is not None]:
        await asyncio.wait(tasks)


def accepts(verifier: TokenVerifier, token: str) -> bool:
    return verifier.find(f"Bearer {token}") is not None
