"""Issuers: several of them, their keys as they change, and their outages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airi.errors import ConfigError
from airi.policy.jwks import INTERVAL_S, KEPT_S, TTL_S
from airi.policy.jwt import TokenVerifier
from airi.policy.oidc import OidcOptions
from airi.policy.tenants import TenantOptions, Tenants

from .conftest import Clock
from .issuer import AUDIENCE, DISCOVERY, JWKS, TestIssuer, serving
from .tokens import accepts, settled, tenants

# -- several tenants and issuers ---------------------------------------------------------------


async def test_tenants_of_one_issuer_are_told_apart_by_audience(issuer: TestIssuer) -> None:
    options = [
        TenantOptions(name=name, oidc=OidcOptions(issuer=issuer.url, audience=f"for-{name}"))
        for name in ("a", "b")
    ]
    async with TokenVerifier(Tenants(options)) as verifier:
        await settled(verifier)
        for name in ("a", "b"):
            principal = verifier.find(f"Bearer {issuer.token(aud=f'for-{name}')}")
            assert principal is not None
            assert principal.tenant == name
        assert not accepts(verifier, issuer.token(aud=["for-a", "for-b"]))  # for two at once
        assert issuer.asked == [DISCOVERY, JWKS]


async def test_an_issuers_keys_verify_its_own_tokens_only(issuer: TestIssuer) -> None:
    with serving(TestIssuer()) as other:
        options = [
            TenantOptions(name=name, oidc=OidcOptions(issuer=whose.url, audience=AUDIENCE))
            for name, whose in (("a", issuer), ("b", other))
        ]
        async with TokenVerifier(Tenants(options)) as verifier:
            await settled(verifier)
            assert accepts(verifier, issuer.token())
            assert accepts(verifier, other.token())
            assert not accepts(verifier, issuer.token(iss=other.url))
            assert not accepts(verifier, other.token(iss=issuer.url))


def test_two_tenants_of_one_issuer_and_audience_are_refused() -> None:
    oidc = OidcOptions(issuer="https://idp.example", audience="airi")
    with pytest.raises(ConfigError, match="tenants a and b have the same issuer and audience"):
        TokenVerifier(Tenants([TenantOptions(name=name, oidc=oidc) for name in ("a", "b")]))


def test_one_issuer_has_one_place_of_keys_and_one_list_of_algorithms() -> None:
    options = [
        TenantOptions(
            name=name, oidc=OidcOptions(issuer="https://idp.example", audience=name, algorithms=(algorithm,))
        )
        for name, algorithm in (("a", "RS256"), ("b", "ES256"))
    ]
    with pytest.raises(
        ConfigError, match=r"issuer https://idp\.example has another jwks_uri or other algorithms"
    ):
        TokenVerifier(Tenants(options))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"issuer": "http://idp.example"}, "issuer is 'http://idp.example'; give an https URL"),
        ({"issuer": "idp.example"}, "issuer is"),
        ({"issuer": "https://user:word@idp.example"}, "issuer is"),
        ({"issuer": "https://idp.example/#x"}, "issuer is"),
        ({"issuer": "file:///etc/passwd"}, "issuer is"),
        ({"issuer": "https://idp.example:port"}, "issuer is"),
        ({"jwks_uri": "http://169.254.169.254/latest"}, "jwks_uri is"),
        ({"audience": " "}, "audience is empty"),
        ({"algorithms": ("RS256", "HS256")}, "algorithms are RS256, HS256; accepted: RS256"),
        ({"algorithms": ("none",)}, "algorithms are none"),
        ({"algorithms": ()}, "algorithms are none; accepted"),
        ({"groups_claim": ""}, "groups_claim is empty"),
        ({"region_claim": ""}, "region_claim is empty"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        OidcOptions(**{"issuer": "https://idp.example", "audience": "airi", **given})


async def test_reloading_keeps_the_keys_of_issuers_that_stay(issuer: TestIssuer) -> None:
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        token = issuer.token()
        assert accepts(verifier, token)
        verifier.use(Tenants([TenantOptions(name="acme")]))
        assert not accepts(verifier, token)
        verifier.use(tenants(issuer))
        await settled(verifier)
        assert accepts(verifier, token)
        verifier.use(tenants(issuer, accept_groups=("*",)))
        principal = verifier.find(f"Bearer {issuer.token(groups=['a'])}")  # at once: its keys were kept
        assert principal is not None
        assert principal.groups == ("gold", "a")


# -- rotation and outage -----------------------------------------------------------------------


async def test_a_new_key_of_the_issuer_is_fetched_for_the_first_token_that_names_it(
    issuer: TestIssuer, clock: Clock
) -> None:
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        clock.now += INTERVAL_S
        issuer.add_key("rsa-2", "RS256")
        header = f"Bearer {issuer.token('rsa-2')}"
        assert verifier.find(header) is None
        assert await verifier.find_late(header) is not None
        assert verifier.find(header) is not None


async def test_unknown_keys_make_one_attempt_in_an_interval_however_many_tokens_come(
    issuer: TestIssuer, clock: Clock
) -> None:
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        for interval in range(1, 4):
            clock.now += INTERVAL_S
            for i in range(20):
                header = f"Bearer {issuer.token('ed-1', header={'kid': f'made up {interval} {i}'})}"
                assert verifier.find(header) is None
                assert await verifier.find_late(header) is None
            assert issuer.asked.count(JWKS) == 1 + interval


async def test_nobody_waits_but_for_a_key_that_is_being_fetched(issuer: TestIssuer, clock: Clock) -> None:
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        clock.now += INTERVAL_S
        issuer.pause.clear()
        unknown = f"Bearer {issuer.token(header={'kid': 'rsa-2'})}"
        assert verifier.find(unknown) is None
        waiting = asyncio.create_task(verifier.find_late(unknown))
        forged = f"Bearer {issuer.token()[:-5]}AAAAA"
        foreign = f"Bearer {issuer.token(iss='https://other.example')}"
        for header in (forged, foreign, "Bearer sk-airi", "Bearer ..", None):
            assert verifier.find(header) is None
            assert await verifier.find_late(header) is None
        assert not waiting.done()
        issuer.pause.set()
        assert await waiting is None


async def test_a_key_that_the_issuer_withdrew_is_refused_after_the_next_fetch(
    issuer: TestIssuer, clock: Clock
) -> None:
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        token = issuer.token("rsa-1")
        assert accepts(verifier, token)
        del issuer.private["rsa-1"]
        clock.now += TTL_S
        verifier._issuers[issuer.url].refresh_if_due()
        await settled(verifier)
        assert not accepts(verifier, token)  # also where it was remembered
        assert accepts(verifier, issuer.token("ec-1"))


@pytest.mark.parametrize("outage", ["status", "garbage", "no keys", "another issuer's", "gone"])
async def test_keys_that_are_known_outlive_an_outage_for_a_day(
    issuer: TestIssuer, clock: Clock, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        (keys,) = verifier._issuers.values()
        if outage == "status":
            issuer.status = 503
        elif outage == "garbage":
            issuer.documents[JWKS] = b"<html>"
        elif outage == "no keys":
            issuer.documents[JWKS] = {"keys": []}
        elif outage == "another issuer's":
            issuer.documents[DISCOVERY] = {"issuer": "https://other.example", "jwks_uri": issuer.url + JWKS}
        else:
            keys._get = lambda _: 1 / 0  # type: ignore[assignment, return-value]
        clock.now += TTL_S
        keys.refresh_if_due()
        await settled(verifier)
        assert "cannot be fetched, those known go on working" in caplog.text
        assert accepts(verifier, issuer.token("ec-1"))
        clock.now += KEPT_S - TTL_S
        remembered = issuer.token("ec-1")
        assert accepts(verifier, remembered)
        assert accepts(verifier, issuer.token("ec-1"))
        clock.now += 1
        assert not accepts(verifier, issuer.token("ec-1"))
        assert not accepts(verifier, remembered)


async def test_an_issuer_that_comes_late_is_asked_again(issuer: TestIssuer, clock: Clock) -> None:
    issuer.status = 500
    async with TokenVerifier(tenants(issuer), monotonic=clock) as verifier:
        await settled(verifier)
        issuer.status = 200
        assert not accepts(verifier, issuer.token())
        await settled(verifier)
        assert issuer.asked == [DISCOVERY]  # not at once
        clock.now += INTERVAL_S
        verifier._issuers[issuer.url].refresh_if_due()
        await settled(verifier)
        assert accepts(verifier, issuer.token())


async def test_an_issuer_may_say_where_its_keys_are_without_a_discovery_document(issuer: TestIssuer) -> None:
    async with TokenVerifier(tenants(issuer, jwks_uri=issuer.url + JWKS)) as verifier:
        await settled(verifier)
        assert accepts(verifier, issuer.token())
        assert issuer.asked == [JWKS]
