"""Tokens: whose are accepted, and that all others get the same answer for the same work."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from airi.errors import ConfigError
from airi.policy.jwks import INTERVAL_S, KEPT_S, TTL_S
from airi.policy.jwt import LEEWAY_S, TokenVerifier
from airi.policy.oidc import ALGORITHMS, OidcOptions
from airi.policy.tenants import TenantOptions, Tenants

from .conftest import Clock
from .issuer import AUDIENCE, DISCOVERY, JWKS, TestIssuer, serving


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


async def test_a_token_speaks_for_the_tenant_of_its_issuer_and_audience(issuer: TestIssuer) -> None:
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        for kid in issuer.private:
            principal = verifier.find(f"Bearer {issuer.token(kid, email='ada@acme.example')}")
            assert principal is not None
            assert (principal.tenant, principal.number, principal.key_id) == ("acme", 1, None)
            assert (principal.groups, principal.priority) == (("gold",), 2)
            assert principal.claims["sub"] == "somebody"
            assert "ada" not in repr(principal)
        assert accepts(verifier, issuer.token(aud=["other", AUDIENCE]))
        assert issuer.asked == [DISCOVERY, JWKS]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_algorithm_that_is_allowed_works(issuer: TestIssuer, algorithm: str) -> None:
    issuer.add_key("k", algorithm)
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        assert accepts(verifier, issuer.token("k"))
    async with TokenVerifier(
        tenants(issuer, algorithms=("RS256" if algorithm != "RS256" else "ES256",))
    ) as verifier:
        await settled(verifier)
        assert not accepts(verifier, issuer.token("k"))


NOW = time.time()
REFUSED_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - LEEWAY_S - 1},
    "without an end": {"exp": None},
    "an end that is text": {"exp": str(NOW + 600)},
    "an end that is true": {"exp": True},
    "not yet": {"nbf": NOW + LEEWAY_S + 60},
    "begins with a text": {"nbf": "now"},
    "made in the future": {"iat": NOW + LEEWAY_S + 60},
    "of another issuer": {"iss": "https://other.example"},
    "of an issuer with a slash more": {"iss": "/"},
    "of no issuer": {"iss": None},
    "of a list of issuers": {"iss": ["a"]},
    "for another audience": {"aud": "other"},
    "for a longer audience": {"aud": AUDIENCE + "x"},
    "for no audience": {"aud": None},
    "for an empty list": {"aud": []},
    "for a list of lists": {"aud": [[AUDIENCE]]},
    "of a number": {"sub": 5},
}


@pytest.mark.parametrize("why", REFUSED_CLAIMS)
async def test_claims_that_do_not_hold_are_refused(issuer: TestIssuer, why: str) -> None:
    claims = dict(REFUSED_CLAIMS[why])
    if claims.get("iss") == "/":
        claims["iss"] = issuer.url + "/"
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        private = issuer.private["rsa-1"][1]
        # Not with encode, which refuses some of them itself.
        payload = json.dumps(issuer.claims(**claims)).encode()
        token = jwt.PyJWS().encode(payload, private, algorithm="RS256", headers={"kid": "rsa-1"})
        assert not accepts(verifier, token)
        good = json.dumps(issuer.claims()).encode()
        assert accepts(
            verifier, jwt.PyJWS().encode(good, private, algorithm="RS256", headers={"kid": "rsa-1"})
        )


@pytest.mark.parametrize(
    "payload", ["[]", "5", "", "{", '{"exp": 1e999}', "[" * 100_000, '{"iss": "\ud800"}', "NaN"]
)
async def test_a_signed_payload_that_is_no_object_of_claims_is_refused(
    issuer: TestIssuer, payload: str
) -> None:
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        content = payload.encode("utf-8", "surrogatepass")[:8000]
        token = jwt.PyJWS().encode(
            content, issuer.private["rsa-1"][1], algorithm="RS256", headers={"kid": "rsa-1"}
        )
        assert not accepts(verifier, token)


async def test_a_clock_that_is_a_little_off_is_forgiven(issuer: TestIssuer, clock: Clock) -> None:
    async with TokenVerifier(tenants(issuer), clock=clock) as verifier:
        await settled(verifier)
        at = clock.now
        token = issuer.token(exp=at, nbf=at, iat=at)
        for now, accepted in (
            (-LEEWAY_S - 1, False),
            (-LEEWAY_S, True),
            (0, True),
            (LEEWAY_S - 1, True),
            (LEEWAY_S, False),
        ):
            clock.now = at + now
            assert accepts(verifier, token) == accepted, now


async def test_a_token_that_was_accepted_ends_in_time(issuer: TestIssuer, clock: Clock) -> None:
    async with TokenVerifier(tenants(issuer), clock=clock) as verifier:
        await settled(verifier)
        token = issuer.token(exp=clock.now + 60)
        assert accepts(verifier, token)
        clock.now += 60 + LEEWAY_S - 1
        assert accepts(verifier, token)
        clock.now += 1
        assert not accepts(verifier, token)


def segment(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forgeries(issuer: TestIssuer) -> dict[str, str]:
    """Tokens that somebody without the issuer's private keys, or another issuer, could make."""
    good = issuer.token("rsa-1")
    header, payload, signature = good.split(".")
    claims = issuer.claims()
    public_pem = issuer.private["rsa-1"][1].public_key().public_bytes(*_pem())
    other = TestIssuer()

    def hmac_with(secret: bytes, algorithm: str = "HS256") -> str:
        signed = f"{segment({'alg': algorithm, 'kid': 'rsa-1'})}.{payload}"
        import hashlib
        import hmac

        return f"{signed}.{segment(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"

    def unsigned(alg: str) -> str:
        return f"{segment({'alg': alg, 'kid': 'rsa-1'})}.{payload}."

    foreign = jwt.encode(claims, other.private["rsa-1"][1], algorithm="RS256", headers={"kid": "rsa-1"})
    own_key = other.public("rsa-1")
    return {
        "another signature": f"{header}.{payload}.{segment(b'x' * 256)}",
        "no signature": f"{header}.{payload}.",
        "another payload": f"{header}.{segment({**claims, 'sub': 'admin'})}.{signature}",
        "another header": f"{segment({'alg': 'RS512', 'kid': 'rsa-1'})}.{payload}.{signature}",
        "alg none": unsigned("none"),
        "alg None": unsigned("None"),
        "alg NONE with signature": unsigned("NONE") + signature,
        "alg empty": unsigned(""),
        "hmac with the public key": hmac_with(public_pem),
        "hmac with the public key, said RS256": hmac_with(public_pem, "RS256"),
        "hmac with nothing": hmac_with(b""),
        "another's key of the same kid": foreign,
        "key in the header": jwt.encode(
            claims, other.private["rsa-1"][1], algorithm="RS256", headers={"kid": "rsa-1", "jwk": own_key}
        ),
        "kid of another kind of key": issuer.token("ec-1", header={"kid": "rsa-1"}),
        "kid of a path": issuer.token("rsa-1", header={"kid": "../../dev/null"}),
        "unknown kid": issuer.token("rsa-1", header={"kid": "rsa-2"}),
        "kid of a number": f"{segment({'alg': 'RS256', 'kid': 5})}.{payload}.{signature}",
        "no kid": f"{segment({'alg': 'RS256'})}.{payload}.{signature}",
        "critical header": issuer.token("rsa-1", header={"crit": ["exp"]}),
        "payload not encoded": issuer.token("rsa-1", header={"crit": ["b64"]}),
        "header no JSON": f"{segment(b'{')}.{payload}.{signature}",
        "header a list": f"{segment([])}.{payload}.{signature}",
        "header deep": f"{segment(b'[' * 5000)}.{payload}.{signature}",
        "header no base64": f"!!!.{payload}.{signature}",
        "signature no base64": f"{header}.{payload}.!!!",
        "blanks within": f"{header}. {payload}.{signature}",
        "nothing": "..",
        "expired": issuer.token(exp=NOW - 600),
        "of another issuer": issuer.token(iss="https://other.example"),
        "for another audience": issuer.token(aud="other"),
    }


def _pem() -> tuple[Any, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


async def test_every_forgery_is_refused_and_costs_one_verification(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        assert accepts(verifier, issuer.token())
        verified = counted(monkeypatch)
        for why, token in forgeries(issuer).items():
            verified.clear()
            assert not accepts(verifier, token), why
            assert len(verified) == 1, why


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The algorithms of the signatures that are verified from now on."""
    from jwt import algorithms

    verified: list[str] = []
    for kind in (
        "RSAAlgorithm",
        "RSAPSSAlgorithm",
        "ECAlgorithm",
        "OKPAlgorithm",
        "HMACAlgorithm",
        "NoneAlgorithm",
    ):
        cls = getattr(algorithms, kind)
        if "verify" in vars(cls):
            monkeypatch.setattr(cls, "verify", _noted(kind, cls.verify, verified))
    return verified


def _noted(kind: str, verify: Callable[..., bool], verified: list[str]) -> Callable[..., bool]:
    def noted(*arguments: Any) -> bool:
        verified.append(kind)
        return verify(*arguments)

    return noted


async def test_what_is_no_token_costs_no_verification(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        verified = counted(monkeypatch)
        long = issuer.token(more="x" * 20_000)
        for text in ("", "sk-airi-abc-def", "a.b", "a.b.c.d", "." * 16_384, long):
            assert verifier.find(f"Bearer {text}") is None
        assert verifier.find(f"Basic {issuer.token()}") is None
        assert verifier.find(None) is None
        assert verified == []


async def test_a_token_is_verified_once_and_remembered_by_its_digest(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.policy.jwt._MOST_CACHED", 3)
    async with TokenVerifier(tenants(issuer)) as verifier:
        await settled(verifier)
        verified = counted(monkeypatch)
        tokens = [issuer.token(jti=str(i)) for i in range(5)]
        for token in tokens:
            for _ in range(3):
                assert accepts(verifier, token)
        assert len(verified) == 5
        assert len(verifier._cache) == 3
        assert not any(token.encode() in repr(vars(verifier)).encode() for token in tokens)


# -- groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "claims", "groups"),
    [
        ({}, {"groups": ["staff", "operators"]}, ()),
        ({"accept_groups": ("staff",)}, {"groups": ["staff", "operators"]}, ("staff",)),
        ({"accept_groups": ("*",)}, {"groups": ["b", "a", "gold"]}, ("b", "a")),
        ({"accept_groups": ("*",)}, {"groups": "b a"}, ("b", "a")),
        ({"accept_groups": ("*",)}, {"groups": [5, None, ["x"], "a"]}, ("a",)),
        ({"accept_groups": ("*",)}, {"groups": {"a": 1}}, ()),
        ({"accept_groups": ("*",)}, {"groups": 5}, ()),
        ({"accept_groups": ("*",), "groups_claim": "realm.roles"}, {"realm": {"roles": ["a"]}}, ("a",)),
        ({"accept_groups": ("*",), "groups_claim": "realm.roles"}, {"realm": "roles"}, ()),
        (
            {"accept_groups": ("*",), "groups_claim": "https://acme.example/groups"},
            {"https://acme.example/groups": ["a"]},
            ("a",),
        ),
    ],
)
async def test_groups_come_from_the_claim_as_far_as_the_issuer_may_name_them(
    issuer: TestIssuer, settings: dict[str, Any], claims: dict[str, Any], groups: tuple[str, ...]
) -> None:
    async with TokenVerifier(tenants(issuer, **settings)) as verifier:
        await settled(verifier)
        principal = verifier.find(f"Bearer {issuer.token(**claims)}")
        assert principal is not None
        assert principal.groups == ("gold", *groups)


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
    get: Any = None
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
            keys._get = get
        clock.now += TTL_S
        keys.refresh_if_due()
        await settled(verifier)
        assert "cannot be fetched, those known go on working" in caplog.text
        assert accepts(verifier, issuer.token("ec-1"))
        clock.now += KEPT_S - TTL_S
        assert accepts(verifier, issuer.token("ec-1"))
        clock.now += 1
        assert not accepts(verifier, issuer.token("ec-1"))


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
