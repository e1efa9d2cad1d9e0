"""Tokens: whose are accepted, and that all others get the same answer for the same work."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from airi.policy.jwt import LEEWAY_S, TokenVerifier
from airi.policy.oidc import ALGORITHMS, OidcOptions
from airi.policy.tenants import TenantOptions, Tenants

from .conftest import Clock
from .issuer import AUDIENCE, DISCOVERY, JWKS, TestIssuer
from .tokens import accepts, settled, tenants


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
    "not yet": {"nbf": NOW + 86_400},
    "begins with a text": {"nbf": "now"},
    "made in the future": {"iat": NOW + 86_400},
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
    header, payload, signature = issuer.token("rsa-1").split(".")
    return {
        **foreign_keys(issuer),
        **malformed(header, payload, signature),
        "another signature": f"{header}.{payload}.{segment(b'x' * 256)}",
        "no signature": f"{header}.{payload}.",
        "another payload": f"{header}.{segment({**issuer.claims(), 'sub': 'admin'})}.{signature}",
        "another header": f"{segment({'alg': 'RS512', 'kid': 'rsa-1'})}.{payload}.{signature}",
        "kid of another kind of key": issuer.token("ec-1", header={"kid": "rsa-1"}),
        "kid of a path": issuer.token("rsa-1", header={"kid": "../../dev/null"}),
        "unknown kid": issuer.token("rsa-1", header={"kid": "rsa-2"}),
        "critical header": issuer.token("rsa-1", header={"crit": ["exp"]}),
        "payload not encoded": issuer.token("rsa-1", header={"crit": ["b64"]}),
        "expired": issuer.token(exp=NOW - 600),
        "of another issuer": issuer.token(iss="https://other.example"),
        "for another audience": issuer.token(aud="other"),
    }


def foreign_keys(issuer: TestIssuer) -> dict[str, str]:
    """Signed with what is no key of the issuer, or with nothing."""
    claims = issuer.claims()
    payload = segment(claims)
    public_pem = (
        issuer.private["rsa-1"][1].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    other = TestIssuer()
    private = other.private["rsa-1"][1]

    def hmac_with(secret: bytes, algorithm: str = "HS256") -> str:
        signed = f"{segment({'alg': algorithm, 'kid': 'rsa-1'})}.{payload}"
        return f"{signed}.{segment(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"

    def unsigned(algorithm: str) -> str:
        return f"{segment({'alg': algorithm, 'kid': 'rsa-1'})}.{payload}."

    def signed_by_another(**header: Any) -> str:
        return jwt.encode(claims, private, algorithm="RS256", headers={"kid": "rsa-1", **header})

    return {
        "alg none": unsigned("none"),
        "alg None": unsigned("None"),
        "alg NONE with signature": unsigned("NONE") + segment(b"x"),
        "alg empty": unsigned(""),
        "hmac with the public key": hmac_with(public_pem),
        "hmac with the public key, said RS256": hmac_with(public_pem, "RS256"),
        "hmac with nothing": hmac_with(b""),
        "another's key of the same kid": signed_by_another(),
        "key in the header": signed_by_another(jwk=other.public("rsa-1")),
        "place of keys in the header": signed_by_another(jku="https://other.example/keys"),
    }


def malformed(header: str, payload: str, signature: str) -> dict[str, str]:
    """What no encoder makes."""
    return {
        "kid of a number": f"{segment({'alg': 'RS256', 'kid': 5})}.{payload}.{signature}",
        "no kid": f"{segment({'alg': 'RS256'})}.{payload}.{signature}",
        "header no JSON": f"{segment(b'{')}.{payload}.{signature}",
        "header a list": f"{segment([])}.{payload}.{signature}",
        "header deep": f"{segment(b'[' * 5000)}.{payload}.{signature}",
        "header no base64": f"!!!.{payload}.{signature}",
        "signature no base64": f"{header}.{payload}.!!!",
        "blanks within": f"{header}. {payload}.{signature}",
        "nothing": "..",
    }


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
        ({"accept_groups": ("*",)}, {"groups": ["operators", "a"]}, ("a",)),
        ({"accept_groups": ("*", "operators")}, {"groups": ["operators", "a"]}, ("operators", "a")),
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


# -- region ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "claims", "region"),
    [
        ("region", {"region": "us"}, "us"),
        ("realm.region", {"realm": {"region": "us"}}, "us"),
        ("region", {}, "eu"),
        ("region", {"region": ""}, "eu"),
        ("region", {"region": ["us"]}, "eu"),
        (None, {"region": "us"}, "eu"),
    ],
)
async def test_the_region_is_that_of_the_claim_else_the_tenants_own(
    issuer: TestIssuer, claim: str | None, claims: dict[str, Any], region: str
) -> None:
    oidc = OidcOptions(issuer=issuer.url, audience=AUDIENCE, region_claim=claim)
    served = Tenants([TenantOptions(name="acme", region="eu", oidc=oidc)])
    async with TokenVerifier(served) as verifier:
        await settled(verifier)
        principal = verifier.find(f"Bearer {issuer.token(**claims)}")
        assert principal is not None
        assert principal.region == region
