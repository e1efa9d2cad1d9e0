"""Documents of issuers: bounded in size and time; keys: only those that fit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airi.policy.fetch import FetchError, fetch
from airi.policy.jwks import Issuer
from airi.policy.oidc import ALGORITHMS

from .issuer import JWKS, TestIssuer


def test_a_document_is_fetched(issuer: TestIssuer) -> None:
    assert fetch(issuer.url + JWKS) == issuer.answer(JWKS)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 404, 500])
def test_another_status_is_an_error_and_redirects_are_not_followed(issuer: TestIssuer, status: int) -> None:
    issuer.status = status
    with pytest.raises(FetchError, match=f"answers with status {status}"):
        fetch(issuer.url + "/elsewhere")
    assert issuer.asked == ["/elsewhere"]


def test_too_much_is_not_read_to_its_end(issuer: TestIssuer) -> None:
    issuer.documents[JWKS] = b"x" * 300_000
    with pytest.raises(FetchError, match="sends more than 262144 bytes"):
        fetch(issuer.url + JWKS)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://idp.example/keys", "https://", ""]
)
def test_only_https_and_this_machine_are_asked(url: str) -> None:
    with pytest.raises(FetchError, match="no URL that keys may come from"):
        fetch(url)


@contextmanager
def answering(*parts: bytes, every_s: float = 0.0) -> Iterator[str]:
    """A server that sends these bytes to its first caller, with pauses, and then holds the connection open."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                for part in parts:
                    try:
                        connection.sendall(part)
                    except OSError:
                        return
                    if over.wait(every_s):
                        return
                over.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            over.set()
            thread.join()


def test_a_server_that_says_nothing_is_left() -> None:
    with answering() as url, pytest.raises(FetchError, match="cannot be fetched: TimeoutError"):
        fetch(url, timeout_s=0.1)


def test_a_server_that_drips_is_left() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    with (
        answering(head, *[b"x"] * 10_000, every_s=0.01) as url,
        pytest.raises(FetchError, match="cannot be fetched: TimeoutError"),
    ):
        fetch(url, timeout_s=0.2)


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort"]
)
def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    with answering(answer) as url, pytest.raises(FetchError, match="cannot be fetched"):
        fetch(url, timeout_s=0.2)


def test_nobody_there_is_an_error(unused_tcp_port: int) -> None:
    with pytest.raises(FetchError, match="Connection refused"):
        fetch(f"http://127.0.0.1:{unused_tcp_port}/")


# -- which keys count --------------------------------------------------------------------------


async def keys_of(issuer: TestIssuer, keys: list[Any]) -> Issuer:
    issuer.documents[JWKS] = {"keys": keys}
    settings = (issuer.url + JWKS, frozenset(ALGORITHMS))
    known = Issuer(issuer.url, settings, on_change=lambda: None)
    known.refresh_soon()
    if known.refreshing is not None:
        await known.refreshing
    return known


def _changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda key: {name: value for name, value in {**key, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "change",
    [
        _changed(kid=None),
        _changed(kid=5),
        _changed(use="enc"),
        _changed(alg="RSA-OAEP"),
        _changed(alg="HS256"),
        _changed(kty="oct", k="c2VjcmV0"),
        _changed(kty="EC"),
        _changed(kty=None),
        _changed(n=None),
        _changed(n="AQAB"),
        _changed(n="!"),
        _changed(n=5),
        _changed(e="AA"),
    ],
)
async def test_a_key_that_does_not_fit_is_left_out(
    issuer: TestIssuer, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    good = issuer.public("ec-1")
    known = await keys_of(issuer, [change(issuer.public("rsa-1")), "no object", good])
    assert known.key("ec-1", "ES256") is not None
    assert list(known._keys) == [("ec-1", "ES256")]


async def test_a_key_verifies_with_what_its_kind_allows(issuer: TestIssuer) -> None:
    pinned = {**issuer.public("rsa-1"), "kid": "pinned", "alg": "RS384"}
    known = await keys_of(issuer, [issuer.public("rsa-1"), pinned, issuer.public("ec-1")])
    assert [known.key("rsa-1", name) is not None for name in ALGORITHMS] == [True] * 6 + [False] * 4
    assert [name for name in ALGORITHMS if known.key("pinned", name)] == ["RS384"]
    assert [name for name in ALGORITHMS if known.key("ec-1", name)] == ["ES256"]


async def test_short_rsa_keys_are_left_out(issuer: TestIssuer) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    issuer.private["short"] = ("RS256", rsa.generate_private_key(65537, 1024))
    known = await keys_of(issuer, [issuer.public("short"), issuer.public("rsa-1")])
    assert known.key("short", "RS256") is None
    assert known.key("rsa-1", "RS256") is not None


async def test_private_parts_that_are_sent_by_mistake_are_not_kept(issuer: TestIssuer) -> None:
    import jwt

    private = jwt.PyJWS().get_algorithm_by_name("RS256").to_jwk(issuer.private["rsa-1"][1], as_dict=True)
    known = await keys_of(issuer, [{**private, "kid": "rsa-1"}])
    key = known.key("rsa-1", "RS256")
    assert key is not None
    assert not hasattr(key.key, "private_numbers")


async def test_only_so_many_keys_are_taken(issuer: TestIssuer) -> None:
    public = issuer.public("ec-1")
    known = await keys_of(issuer, [{**public, "kid": f"k{i}"} for i in range(100)])
    assert known.key("k63", "ES256") is not None
    assert known.key("k64", "ES256") is None
