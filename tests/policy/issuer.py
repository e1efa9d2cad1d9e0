"""An OpenID Connect issuer on loopback: its documents, its keys, and the tokens it would sign."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "airi"
DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/keys"


class TestIssuer:
    """What it serves and signs; tests change it while it serves."""

    __test__ = False

    def __init__(self) -> None:
        self.url = ""
        self.private: dict[str, tuple[str, Any]] = {}
        """By kid: algorithm and private key."""
        self.documents: dict[str, Any] = {}
        """Answers in place of its own, by path: an object, or bytes as they are."""
        self.status = 200
        self.asked: list[str] = []
        self.pause = threading.Event()
        self.pause.set()
        """Answers wait while it is clear."""
        for kid, algorithm in (("rsa-1", "RS256"), ("ec-1", "ES256"), ("ed-1", "EdDSA")):
            self.add_key(kid, algorithm)

    def add_key(self, kid: str, algorithm: str) -> None:
        """A new pair of keys, of which the public one is served from now on."""
        private: Any
        if algorithm == "EdDSA":
            private = ed25519.Ed25519PrivateKey.generate()
        elif algorithm.startswith("ES"):
            curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
            private = ec.generate_private_key(curves[algorithm])
        else:
            private = rsa.generate_private_key(65537, 2048)
        self.private[kid] = (algorithm, private)

    def public(self, kid: str) -> dict[str, Any]:
        """A key as the set of keys has it."""
        algorithm, private = self.private[kid]
        known = jwt.PyJWS().get_algorithm_by_name(algorithm)
        return {**known.to_jwk(private.public_key(), as_dict=True), "kid": kid, "use": "sig"}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of a token that is accepted, with changes; None takes a claim out."""
        now = time.time()
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "exp": now + 600,
            "iat": now,
            "sub": "somebody",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        kid: str = "rsa-1",
        *,
        algorithm: str | None = None,
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A signed token."""
        own, private = self.private[kid]
        return jwt.encode(
            self.claims(**changes),
            private,
            algorithm=algorithm or own,
            headers={"kid": kid, **(header or {})},
        )

    def answer(self, path: str) -> bytes:
        own = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": self.url + JWKS},
            JWKS: {"keys": [self.public(kid) for kid in self.private]},
        }
        document = self.documents.get(path, own.get(path))
        return document if isinstance(document, bytes) else json.dumps(document).encode()


@contextmanager
def serving(issuer: TestIssuer) -> Iterator[TestIssuer]:
    """Serves it until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            issuer.pause.wait(30)
            body = issuer.answer(self.path)
            self.send_response(issuer.status)
            self.send_header("location", issuer.url + JWKS)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.pause.set()
        server.shutdown()
        thread.join()
        server.server_close()
